"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Reference = Annotated[str, typer.Argument(help="Model version: NAME@alias, NAME/3, or NAME for the newest.")]
Home = Annotated[Path | None, typer.Option("--home", help="Home folder; default: ./.gradtrail.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
