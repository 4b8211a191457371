"""A mapping whose members register themselves when their module is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Registry(Mapping[Key, Value]):
    """A mapping that is complete whenever it is read, whoever imported it.

    Args:
        modules: the modules whose import adds members; they are imported when the registry is read first.
    """

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._members: dict[Key, Value] = {}

    def add(self, key: Key, value: Value) -> None:
        """Add a member; one of the same key is replaced."""
        self._members[key] = value

    def discard(self, key: Key) -> None:
        """Take a member out, where there is one: an extension that is not wanted any longer."""
        self._members.pop(key, None)

    def __getitem__(self, key: Key) -> Value:
        return self._complete()[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._complete())

    def __len__(self) -> int:
        return len(self._complete())

    def _complete(self) -> dict[Key, Value]:
        for module in self._modules:
            import_module(module)
        self._modules = ()
        return self._members
