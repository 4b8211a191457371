"""Adapters are code: only those on the allow-list load, and only with the source that was pinned."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from gradtrail.attribution.adapters.base import ModelAdapter
from gradtrail.digests import sha256_file, short
from gradtrail.errors import ModelError, NotFoundError, UntrustedCodeError, UsageError

BUILT_IN_ADAPTERS = ("gradtrail.demo.*",)


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter instance, the `module:Class` it came from, and the sha256 of that module's source file."""

    adapter: ModelAdapter
    reference: str
    source_sha256: str


def adapter_reference(adapter: ModelAdapter) -> str:
    """The `module:Class` under which an adapter can be loaded again.

    Raises:
        UsageError: if its class lives in `__main__` or inside a function, where no other process can find it.
    """
    kind = type(adapter)
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        raise UsageError(
            f"The adapter {kind.__qualname__} is defined in the script itself, where no later process can import it.",
            "Move the class to a module of its own, for example my_adapter.py, and import it from there.",
        )
    return f"{kind.__module__}:{kind.__qualname__}"


def adapter_source_sha256(reference: str, search_path: Path | None = None) -> str:
    """Digest of the source file behind `module:Class`, found without running that file.

    Raises:
        UsageError: if the reference is malformed.
        NotFoundError: if the module cannot be found or has no source file.
    """
    return sha256_file(_source_file(_split(reference)[0], search_path))


def load_adapter(
    reference: str,
    *,
    allowed: Sequence[str] = (),
    expected_sha256: str | None = None,
    search_path: Path | None = None,
) -> LoadedAdapter:
    """Import `module:Class` and make an instance of it.

    Args:
        reference: for example `my_adapter:MyAdapter`.
        allowed: patterns of references that may run (`my_adapter:*`), beside gradtrail's own.
        expected_sha256: digest of the module's source file that was pinned at ingest, if any.
        search_path: folder to look in for the module before the installed packages.

    Raises:
        UntrustedCodeError: if no pattern allows it, or its source is not the pinned one. Nothing of it has run then.
        NotFoundError: if there is no such module or class.
        ModelError: if the class is no `ModelAdapter`, leaves abstract methods open, or fails when made.
    """
    module_name, class_name = _split(reference)
    if not any(fnmatchcase(reference, pattern) for pattern in (*BUILT_IN_ADAPTERS, *allowed)):
        raise UntrustedCodeError(
            f"The adapter {reference} is not on the allow-list, and an adapter is code that would run here.",
            f'If you trust it, add it to gradtrail.toml: allowed_adapters = ["{reference}"].',
        )
    source_sha256 = sha256_file(_source_file(module_name, search_path))
    if expected_sha256 is not None and source_sha256 != expected_sha256:
        raise UntrustedCodeError(
            f"The source of the adapter {reference} changed: {short(source_sha256)} now, "
            f"{short(expected_sha256)} when the model version was pinned.",
            "Restore that source, or register the model again with the new adapter.",
        )
    module = importlib.import_module(module_name)
    adapter_class = getattr(module, class_name, None)
    if adapter_class is None:
        raise NotFoundError(f"The module {module_name} has no class {class_name}.", "Check the name after the colon.")
    if not (isinstance(adapter_class, type) and issubclass(adapter_class, ModelAdapter)):
        raise ModelError(
            f"{reference} is not a ModelAdapter.",
            "Derive it from gradtrail.ModelAdapter, ClassificationAdapter or RegressionAdapter.",
        )
    try:
        adapter = adapter_class()
    except TypeError as error:
        raise ModelError(
            f"The adapter {reference} cannot be made: {error}.",
            "An adapter takes no arguments and implements build_model and training_data.",
        ) from error
    return LoadedAdapter(adapter, reference, source_sha256)


def _split(reference: str) -> tuple[str, str]:
    module_name, separator, class_name = reference.partition(":")
    if not separator or not class_name.isidentifier() or not all(p.isidentifier() for p in module_name.split(".")):
        raise UsageError(f"{reference!r} does not name an adapter.", "Write it as module:Class.")
    return module_name, class_name


def _source_file(module_name: str, search_path: Path | None) -> Path:
    if search_path is not None and str(search_path.resolve()) not in sys.path:
        sys.path.insert(0, str(search_path.resolve()))
    try:
        found = importlib.util.find_spec(module_name)
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise NotFoundError(
            f"No source file for the adapter module {module_name} was found.",
            "Run gradtrail in the folder that holds it, or install the package it belongs to.",
        )
    return Path(found.origin)
