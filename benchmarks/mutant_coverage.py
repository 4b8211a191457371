"""A pytest plugin: which tests run which lines, and how long each test takes.

What a fixture of a module or a session runs counts for every test that asks for the fixture, not only for the first.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import coverage
import pytest


class LinesByTest:
    """Traces `files` while tests run, and writes what it found as JSON.

    `seconds` of each test; `tests` by file and line, those that pass; `not_passed`; `libraries` that were imported.
    """

    def __init__(self, files: list[Path], output: Path) -> None:
        self._files = [path.resolve() for path in files]
        self._output = output
        self._coverage = coverage.Coverage(data_file=None, include=[str(path) for path in self._files])
        self._contexts = [""]
        self._seconds: dict[str, float] = {}
        self._shared = 0.0
        self._asking: dict[str, set[str]] = defaultdict(set)
        self._failed: set[str] = set()

    def pytest_sessionstart(self) -> None:
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._asking[f"test {item.nodeid}"].add(item.nodeid)
        info = getattr(item, "_fixtureinfo", None)
        for definitions in info.name2fixturedefs.values() if info else ():
            for definition in definitions:
                self._asking[_fixture(definition)].add(item.nodeid)
        begin, self._shared = _cpu_seconds(), 0.0
        result = yield from self._within(f"test {item.nodeid}")
        self._seconds[item.nodeid] = _cpu_seconds() - begin - self._shared
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        if fixturedef.scope == "function":
            return (yield)
        begin = _cpu_seconds()
        result = yield from self._within(_fixture(fixturedef))
        if self._contexts[-1].startswith("test "):
            self._shared += _cpu_seconds() - begin
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self._failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        data, tests = self._coverage.get_data(), {}
        for path in self._files:
            lines = data.contexts_by_lineno(str(path))
            tests[str(path)] = {
                line: sorted({test for context in contexts for test in self._asking[context]} - self._failed)
                for line, contexts in lines.items()
            }
        here = str(Path.cwd().resolve())
        libraries = [
            name
            for name, module in list(sys.modules.items())
            if (file := getattr(module, "__file__", None)) and not str(Path(file).resolve()).startswith(here)
        ]
        found = {
            "seconds": self._seconds,
            "not_passed": sorted(self._failed),
            "libraries": libraries,
            "tests": tests,
        }
        self._output.write_text(json.dumps(found))

    def _within(self, context: str) -> Generator[None, Any, Any]:
        self._contexts.append(context)
        self._coverage.switch_context(context)
        try:
            return (yield)
        finally:
            self._contexts.pop()
            self._coverage.switch_context(self._contexts[-1])


def pytest_configure(config: pytest.Config) -> None:
    files = [Path(path) for path in os.environ["MUTANTS_FILES"].split(os.pathsep)]
    config.pluginmanager.register(LinesByTest(files, Path(os.environ["MUTANTS_COVERAGE"])))


def _fixture(definition: pytest.FixtureDef[Any]) -> str:
    return f"fixture {definition.baseid} {definition.argname}"


def _cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
