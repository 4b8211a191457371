"""Opening a source by its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradtrail.errors import UsageError
from gradtrail.storage.models.registry import Registry
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.storage.sources.rows import Source


def open_source(
    config: SourceConfig, registry: Callable[[], Registry], load: Callable[[str], Any] | None = None
) -> Source:
    """The source that a configuration means; nothing is read yet.

    Args:
        config: the source as the settings describe it.
        registry: opens the registry whose MLflow has the traces; other kinds leave it closed.
        load: imports the class of a kind `module:Class`, where the settings allow it.

    Raises:
        UsageError: its address cannot be used, or its class is no source.
    """
    if config.is_foreign and load is not None:
        made = load(config.kind)(config)
        if not isinstance(made, Source):
            raise UsageError(
                f"{config.kind} makes no source of outputs.", "Give its class the methods `arrivals` and `settle`."
            )
        return made
    if config.kind == "sql":
        from gradtrail.storage.sources.sql import SqlSource

        return SqlSource(config)
    if config.kind == "traces":
        from gradtrail.storage.sources.traces import TraceSource

        return TraceSource(config, registry().client)
    from gradtrail.storage.sources.files import FileSource

    return FileSource(config.resolved_location(), config.fields, config.constants)
