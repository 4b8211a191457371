"""Adapters are code: only those on the allow-list load, and only with the source that was pinned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradtrail.attribution.adapters.base import ModelAdapter
from gradtrail.attribution.adapters.deciding import deciding_digests
from gradtrail.errors import ModelError, UsageError
from gradtrail.extensions import load_object, source_sha256

BUILT_IN_ADAPTERS = ("gradtrail.demo.*",)
ADAPTER = "an adapter"


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter instance, the `module:Class` it came from, and the sha256 of that module's source file.

    `decided_by` are digests of all that is known to decide what it measures; see `deciding_digests`.
    """

    adapter: ModelAdapter
    reference: str
    source_sha256: str
    decided_by: Mapping[str, str]


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
    return source_sha256(reference, ADAPTER, search_path)


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
    return LoadedAdapter(adapter, reference, loaded.source_sha256, deciding_digests(adapter))
