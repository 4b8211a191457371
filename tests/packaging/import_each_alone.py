"""Imports every module of gradtrail first and alone; prints a JSON list of those that cannot be, each with the error.

A module runs anew, with nothing of gradtrail loaded but what it needs anyway and what does not need it: as modules are
tried one after the other, any way into a circle of imports is gone, at the cost of running each module about once.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType

import gradtrail

TOP = "gradtrail"


def module_names() -> list[str]:
    """Every module, packages included."""
    found = [TOP]
    for entry in pkgutil.iter_modules(gradtrail.__path__, f"{TOP}."):
        if entry.name != f"{TOP}.{TOP}":  # a checkout holds the package among its rooms
            found.append(entry.name)
            if entry.ispkg:
                inside = importlib.import_module(entry.name).__path__
                found += [each.name for each in pkgutil.walk_packages(inside, f"{entry.name}.")]
    return sorted(found)


def parents(name: str) -> Iterator[str]:
    """The packages around a module."""
    while name := name.rpartition(".")[0]:
        yield name


def direct_needs(name: str, names: set[str]) -> set[str]:
    """What a module's own lines import; lines below `if` or in functions are left to its import itself."""
    specification = importlib.util.find_spec(name)
    assert specification is not None
    assert specification.origin is not None
    said = set(parents(name))
    for line in ast.parse(Path(specification.origin).read_text("utf-8")).body:
        if isinstance(line, ast.Import):
            said |= {alias.name for alias in line.names}
        elif isinstance(line, ast.ImportFrom) and line.module:
            said |= {line.module} | {f"{line.module}.{alias.name}" for alias in line.names}
    return {each for module in said for each in (module, *parents(module))} & names


def all_needs(direct: Mapping[str, set[str]], name: str) -> set[str]:
    """What a module needs, and what that needs, and so on; itself only in a circle."""
    found, open_ones = set[str](), list(direct[name])
    while open_ones:
        if (each := open_ones.pop()) not in found:
            found.add(each)
            open_ones += direct[each]
    return found


def import_alone(name: str, kept: set[str]) -> str:
    """The error of a first import, empty without one."""
    loaded = {each: module for each, module in sys.modules.items() if is_ours(each)}
    unload(set(loaded) - kept)
    try:
        importlib.import_module(name)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        unload({each for each in sys.modules if is_ours(each)} - kept)
        sys.modules.update(loaded)
        bind(loaded)
    return ""


def unload(names: set[str]) -> None:
    """Forget modules, and the names that their packages have for them: `from package import module` takes these."""
    for name in names:
        package, _, short = name.rpartition(".")
        if package in sys.modules and vars(sys.modules[package]).get(short) is sys.modules[name]:
            delattr(sys.modules[package], short)
    for name in names:
        del sys.modules[name]


def bind(modules: Mapping[str, ModuleType]) -> None:
    """Give modules their names in their packages, where these are free."""
    for name, module in modules.items():
        package, _, short = name.rpartition(".")
        if package and short not in vars(sys.modules[package]):
            setattr(sys.modules[package], short, module)


def is_ours(name: str) -> bool:
    """Whether a module is gradtrail's."""
    return name == TOP or name.startswith(f"{TOP}.")


def main() -> None:
    """Try every module."""
    names = module_names()
    direct = {name: direct_needs(name, set(names)) for name in names}
    needs = cache(lambda name: all_needs(direct, name))
    for name in names:
        with suppress(Exception):  # told below
            importlib.import_module(name)
    errors = {name: import_alone(name, {each for each in needs(name) if name not in needs(each)}) for name in names}
    print(json.dumps([f"{name}: {error}" for name, error in errors.items() if error]))


if __name__ == "__main__":
    main()
