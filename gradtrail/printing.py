"""How commands print: text as it is on a terminal, one JSON document with `--json`."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape

from gradtrail.errors import AttributionWarning

if TYPE_CHECKING:
    from gradtrail.errors import GradtrailError

_UNWATCHED_WIDTH = 240


def console() -> Console:
    """A console on standard output as it is now; wide where nobody watches, so that digests stay whole."""
    on_terminal = sys.stdout.isatty()
    return Console(highlight=False, width=None if on_terminal else _UNWATCHED_WIDTH)


def say_or_json(value: Any, text: str, *, as_json: bool) -> None:
    """One result: a sentence for people, or JSON for scripts."""
    print_json(value) if as_json else say(text)


def say(*lines: str) -> None:
    """Lines of text as they are, wrapped by the terminal alone."""
    for line in lines:
        console().print(escape(line), soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON document."""
    sys.stdout.write(json.dumps(_as_json(value), ensure_ascii=False, indent=2) + "\n")


def show_error(error: GradtrailError) -> None:
    """What happened and what to do, on standard error."""
    target = Console(stderr=True, highlight=False)
    target.print(f"[bold red]Error:[/] {escape(error.what)}", soft_wrap=True)
    if error.remedy:
        target.print(f"[bold]Remedy:[/] {escape(error.remedy)}", soft_wrap=True)


def calm_warnings() -> None:
    """From now on an AttributionWarning is one line on standard error; other warnings look as Python prints them."""
    plain = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, AttributionWarning):
            return plain(message, category, filename, lineno, file, line)
        note = f"[bold yellow]Note:[/] {escape(str(message))}"
        return Console(stderr=True, highlight=False).print(note, soft_wrap=True)

    warnings.showwarning = show


def _as_json(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_as_json(item) for item in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else value
