"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradtrail.errors import UsageError

Reference = Annotated[str, typer.Argument(help="Model version: NAME@alias, NAME/3, or NAME for the newest.")]
Home = Annotated[
    Path | None,
    typer.Option("--home", help="Home folder; default: `home` of the settings, else ./.gradtrail.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def write_file(path: Path, content: bytes) -> None:
    """Write a file that somebody asked for, whole or not at all.

    Raises:
        UsageError: if it cannot be written, for example because the disk is full; what was there stays.
    """
    from gradtrail.storage.atomic import write_atomically

    try:
        write_atomically(path, content)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}.", "Check the disk, or choose another place."
        ) from error
