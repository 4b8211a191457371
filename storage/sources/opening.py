"""Opening a source by its kind."""

from __future__ import annotations

from collections.abc import Callable

from gradtrail.storage.models.registry import Registry
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.storage.sources.rows import Source


def open_source(config: SourceConfig, registry: Callable[[], Registry]) -> Source:
    """The source that a configuration means; nothing is read yet.

    Args:
        registry: opens the registry whose MLflow has the traces; other kinds leave it closed.

    Raises:
        UsageError: its address cannot be used.
    """
    if config.kind == "sql":
        from gradtrail.storage.sources.sql import SqlSource

        return SqlSource(config)
    if config.kind == "traces":
        from gradtrail.storage.sources.traces import TraceSource

        return TraceSource(config, registry().client)
    from gradtrail.storage.sources.files import FileSource

    return FileSource(config.resolved_location(), config.fields, config.constants)
