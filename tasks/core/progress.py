"""Progress on a terminal; silent elsewhere, where Prefect's own records tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressBar:
    """A counter that `advance` moves on."""

    def __init__(self, progress: Progress, description: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total)

    def advance(self, count: int) -> None:
        """Count `count` more items as done."""
        self._progress.advance(self._task, count)


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[ProgressBar]:
    """Show a bar on standard error while the block runs; it disappears at the end."""
    console = Console(stderr=True)
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not (console.is_terminal or console.is_jupyter)
    ) as progress:
        yield ProgressBar(progress, description, total)


def say(sentence: str) -> None:
    """One line on standard error, for whoever waits; results go to standard output."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"  {sentence}", markup=False)
