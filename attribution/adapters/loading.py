"""Adapters are code: only those on the allow-list load, and only with the source that was pinned."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradtrail.attribution.adapters.base import ModelAdapter
from gradtrail.attribution.adapters.deciding import deciding_digests, own_sources
from gradtrail.digests import sha256_file
from gradtrail.errors import ModelError, UsageError
from gradtrail.extensions import load_object, reference_sha256
from gradtrail.hashed_imports import refuse_other_bytecode
from gradtrail.own_sources import code_of

BUILT_IN_ADAPTERS = ("gradtrail.demo.*",)
ADAPTER = "an adapter"
_IMPORTED: dict[str, tuple[object, dict[Path, str]]] = {}
"""By module: what Python knows of its import, and the digests of the sources that it and those beside it came from."""


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter instance, the `module:Class` it came from, and the sha256 that pins its code.

    That is the digest of the module's source file where it is all the code, else of the names and digests of all files.

    `decided_by` are digests of all that is known to decide what it measures; see `deciding_digests`.
    """

    adapter: ModelAdapter
    reference: str
    source_sha256: str
    decided_by: Mapping[str, str]


def adapter_reference(adapter: ModelAdapter) -> str:
    """The `module:Class` under which an adapter can be loaded again.

    Raises:
        UsageError: if its class lives in `__main__` or inside a function, where no other process can find it, or its
            source was changed since it was imported.
        UntrustedCodeError: if it was imported from bytecode that is not that of its source.
    """
    kind = type(adapter)
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        raise UsageError(
            f"The adapter {kind.__qualname__} is defined in the script itself, where no later process can import it.",
            "Move the class to a module of its own, for example my_adapter.py, and import it from there.",
        )
    known = getattr(sys.modules.get(kind.__module__), kind.__qualname__, kind)
    if known is not kind or _has_changed(kind.__module__):
        raise UsageError(
            f"{kind.__module__}:{kind.__qualname__} was made before its source changed, and does not measure "
            "what that says.",
            "Start Python anew, or importlib.reload its module and make the adapter again.",
        )
    if own := getattr(sys.modules.get(kind.__module__), "__file__", None):
        refuse_other_bytecode(code_of(kind.__module__, Path(own))[1])
    _note_import(kind.__module__)
    return f"{kind.__module__}:{kind.__qualname__}"


def adapter_source_sha256(reference: str, search_path: Path | None = None) -> str:
    """Digest of all code behind `module:Class`, found without running any of it.

    Raises:
        UsageError: if the reference is malformed.
        NotFoundError: if the module cannot be found or has no source file.
    """
    return reference_sha256(reference, ADAPTER, search_path)


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
        expected_sha256: digest of its code, or of the module's source file alone, that was pinned at ingest, if any.
        search_path: folder to look in for the module before the installed packages.

    Raises:
        UntrustedCodeError: if no pattern allows it, or its source is not the pinned one. Nothing of it has run then.
        NotFoundError: if there is no such module or class.
        ModelError: if the class is no `ModelAdapter`, leaves abstract methods open, or fails when made.
    """
    _forget_if_changed(reference.partition(":")[0])
    loaded = load_object(
        reference,
        ADAPTER,
        allowed=(*BUILT_IN_ADAPTERS, *allowed),
        setting="allowed_adapters",
        expected_sha256=expected_sha256,
        search_path=search_path,
    )
    adapter_class = loaded.value
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
    _note_import(adapter_class.__module__)
    return LoadedAdapter(adapter, reference, expected_sha256 or loaded.code_sha256, deciding_digests(adapter))


def _note_import(module_name: str) -> None:
    """Remember the sources that a module was imported from, unless it is the one that is known."""
    module = sys.modules.get(module_name)
    if module_name not in _IMPORTED or _IMPORTED[module_name][0] is not getattr(module, "__spec__", None):
        _IMPORTED[module_name] = getattr(module, "__spec__", None), own_sources(module_name)


def _has_changed(module_name: str) -> bool:
    """Whether a source that an imported module came from is another one now: what runs is not what its digest says."""
    spec, sources = _IMPORTED.get(module_name, (None, {}))
    if spec is None or getattr(sys.modules.get(module_name), "__spec__", None) is not spec:
        return False
    return any(not path.is_file() or sha256_file(path) != digest for path, digest in sources.items())


def _forget_if_changed(module_name: str) -> None:
    """Let a module, and those beside it, be imported anew where a source changed since this process imported it."""
    if _has_changed(module_name):
        changed = {str(path) for path in _IMPORTED.pop(module_name)[1]}
        for name, module in list(sys.modules.items()):
            if getattr(module, "__file__", None) in changed:
                del sys.modules[name]
        importlib.invalidate_caches()
