"""Opening a source by its kind."""

from __future__ import annotations

from collections.abc import Callable

from gradtrail.storage.registry import Registry
from gradtrail.storage.source_config import SourceConfig
from gradtrail.storage.source_rows import Source


def open_source(config: SourceConfig, registry: Callable[[], Registry]) -> Source:
    """The source that a configuration means; nothing is read yet.

    Args:
        registry: opens the registry whose MLflow has the traces; other kinds leave it closed.

    Raises:
        UsageError: its address cannot be used.
    """
    if config.kind == "sql":
        from gradtrail.storage.source_sql import SqlSource

        return SqlSource(config)
    if config.kind == "traces":
        from gradtrail.storage.source_traces import TraceSource

        return TraceSource(config, registry().client)
    from gradtrail.storage.source_files import FileSource

    return FileSource(config.resolved_location(), config.fields, config.constants)
