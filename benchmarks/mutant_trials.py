"""One process a mutant: a fork that has every library imported already, and imports gradtrail with the change."""

from __future__ import annotations

import gc
import importlib
import os
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

import hypothesis
import pytest

Fate = Literal["killed", "timeout", "survived"]

_WAIT_SECONDS = 60
"""So long may one test wait, and everything before the first: more is a fault that never ends."""


@dataclass(frozen=True)
class Trial:
    """What became of a mutant, by which test where one failed, what that took, and what pytest said."""

    fate: Fate
    by: str
    seconds: float
    said: str = ""


class Trials:
    """Runs tests of `tree` in forks, each with one file of it changed for as long as that takes."""

    def __init__(self, tree: Path, libraries: Iterable[str]) -> None:
        self._tree = tree
        self._numbers = count(1)
        hypothesis.settings.register_profile(
            "mutants", deadline=None, derandomize=True, database=None, phases=[hypothesis.Phase.generate]
        )
        for name in libraries:
            with suppress(Exception):
                importlib.import_module(name)
        # It starts its runtime anew in a fork, and nothing of it is at work in this process.
        warnings.filterwarnings("ignore", message="lancedb fork support")
        gc.freeze()

    def run(self, path: str, source: str | None, tests: Sequence[str], seconds: float) -> Trial:
        """`tests` in their order until one fails, with `source` in place of the file.

        Where they cannot even be run any more, the change is noticed as well: so try first without any change.
        """
        file, work = self._tree / path, self._tree / ".trial"
        work.mkdir()
        original, times = file.read_bytes(), file.stat()
        try:
            if source is not None:
                file.write_text(source, "utf-8")
                # Else the compiled file of another source of the same length and second would be taken for this one's.
                os.utime(file, (next(self._numbers), next(self._numbers)))
            return self._forked(work, tests, seconds)
        finally:
            file.write_bytes(original)
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
            shutil.rmtree(work, ignore_errors=True)

    def _forked(self, work: Path, tests: Sequence[str], seconds: float) -> Trial:
        child = os.fork()
        if child == 0:
            _run_and_exit(self._tree, work, tests, seconds)
        _, status, usage = os.wait4(child, 0)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        spent = usage.ru_utime + usage.ru_stime
        failed = work / "failed"
        by = failed.read_text() if failed.exists() else ""
        said = (work / "output").read_text(errors="replace")[-4000:]
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in {signal.SIGXCPU, signal.SIGALRM}:
            return Trial("timeout", by, spent, said)
        return Trial("survived" if status == 0 else "killed", by, spent, said)


class _FirstFailure:
    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_runtest_logstart(self) -> None:
        signal.alarm(_WAIT_SECONDS)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._file.write_text(report.nodeid)


def _run_and_exit(tree: Path, work: Path, tests: Sequence[str], seconds: float) -> None:
    code = 70
    try:
        os.setsid()
        signal.alarm(_WAIT_SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 30))
        output = os.open(work / "output", os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        sys.dont_write_bytecode = True
        os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        plain = ["-x", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist"]
        code = int(
            pytest.main(
                [*plain, f"--basetemp={work / 'temporary'}", "--hypothesis-profile=mutants", *tests],
                plugins=[_FirstFailure(work / "failed")],
            )
        )
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
