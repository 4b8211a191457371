"""The end of a process that ran flows: nothing is printed that nobody can use."""

from __future__ import annotations

import sys

_LOOP_END_SECONDS = 5.0


def end_prefect() -> None:
    """End the event loop of Prefect, where one runs in this process.

    Its thread would keep DuckDB's module beyond the interpreter's end, and the module's bindings then print, in forty
    lines, that they leaked.
    """
    loops = sys.modules.get("prefect._internal.concurrency.threads")
    # Not a part of Prefect's public interface: where it is called otherwise, the lines are printed.
    if (end := getattr(loops, "wait_for_global_loop_exit", None)) is not None:
        end(timeout=_LOOP_END_SECONDS)
