"""One function called in several processes at once, which end with the one that started them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from gradtrail.errors import GradtrailError

Result = TypeVar("Result")


class WorkerLostError(GradtrailError):
    """A process that ended before its work did: killed by someone, or by a system out of memory."""


def run_in_processes(
    function: Callable[..., Result], calls: Sequence[tuple[Any, ...]], *, meanwhile: Callable[[], None], every: float
) -> list[Result]:
    """What `function` returns for each of `calls`, in order; each runs in a fresh process, all at the same time.

    `meanwhile` is called here at least each `every` seconds. When one process fails, or this one is interrupted or
    killed, the others end at once, wherever they are. They write nothing to standard error.

    Raises:
        WorkerLostError: a process ended before its work did. Whatever `function` raises is raised here.
    """
    context = get_context("spawn")
    # Nothing is ever sent: that the other end is closed, by us or because we were killed, is the message.
    listening, held = context.Pipe(duplex=False)
    answers: dict[Connection, int] = {}
    results: dict[int, Result] = {}
    started = []
    try:
        for place, call in enumerate(calls):
            answer, answering = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(function, call, answering, listening))
            process.start()
            # Only the process itself holds this end now, so that its death closes it.
            answering.close()
            started.append(process)
            answers[answer] = place
        while answers:
            ready = wait(list(answers), timeout=every)
            for answer in [each for each in answers if each in ready]:
                results[answers.pop(answer)] = _received(answer, len(calls))
            meanwhile()
    finally:
        held.close()
        for connection in (listening, *answers):
            connection.close()
        for process in started:
            process.join()
    return [results[place] for place in range(len(calls))]


def _received(answer: Connection, processes: int) -> Any:
    with answer:
        try:
            raised, value = answer.recv()
        except EOFError as fault:
            raise WorkerLostError(
                f"One of {processes} worker processes was killed, by someone or for want of memory.",
                "Run the same command again: it resumes. With fewer workers it takes less memory.",
            ) from fault
    if raised:
        raise value
    return value


def _work(function: Callable[..., Any], arguments: tuple[Any, ...], answering: Connection, parent: Connection) -> None:
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (until the process ends)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        answering.send((False, function(*arguments)))
    except Exception as fault:
        answering.send((True, fault))


def _end_with(parent: Connection) -> None:
    try:
        parent.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
