"""Code that users bring: only what an allow-list names is imported, once the digest of its source file is known."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gradtrail.digests import sha256_file, short
from gradtrail.errors import NotFoundError, UntrustedCodeError, UsageError


@dataclass(frozen=True)
class Loaded:
    """What a reference names, the `module:name` itself, and the sha256 of that module's source file."""

    value: Any
    reference: str
    source_sha256: str


def split_reference(reference: str, what: str) -> tuple[str, str]:
    """Module and name of `module:name`; `what` says in errors what it should name.

    Raises:
        UsageError: if it is malformed.
    """
    module_name, separator, name = reference.partition(":")
    if not separator or not name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise UsageError(f"{reference!r} does not name {what}.", "Write it as module:Class or module:function.")
    return module_name, name


def source_sha256(reference: str, what: str, search_path: Path | None = None) -> str:
    """Digest of the source file behind `module:name`, found without running that file.

    Raises:
        UsageError: if the reference is malformed.
        NotFoundError: if the module cannot be found or has no source file.
    """
    return sha256_file(_source_file(split_reference(reference, what)[0], what, search_path))


def load_object(
    reference: str,
    what: str,
    *,
    allowed: Sequence[str],
    setting: str,
    expected_sha256: str | None = None,
    search_path: Path | None = None,
) -> Loaded:
    """Import what `module:name` names.

    Args:
        reference: for example `my_adapter:MyAdapter`.
        what: what it is, in errors: "an adapter", "a policy rule".
        allowed: patterns of references that may run (`my_adapter:*`).
        setting: key of the settings that holds the allow-list, for the remedy.
        expected_sha256: digest of the module's source file that was pinned earlier, if any.
        search_path: folder to look in for the module before the installed packages.

    Raises:
        UntrustedCodeError: if no pattern allows it, or its source is not the pinned one. Nothing of it has run then.
        NotFoundError: if there is no such module or name.
        UsageError: if the reference is malformed.
    """
    module_name, name = split_reference(reference, what)
    noun = what.removeprefix("an ").removeprefix("a ")
    if not any(fnmatchcase(reference, pattern) for pattern in allowed):
        raise UntrustedCodeError(
            f"The {noun} {reference} is not on the allow-list, and {what} is code that would run here.",
            f'If you trust it, add it to gradtrail.toml: {setting} = ["{reference}"].',
        )
    digest = sha256_file(_source_file(module_name, what, search_path))
    if expected_sha256 is not None and digest != expected_sha256:
        raise UntrustedCodeError(
            f"The source of the {noun} {reference} changed: {short(digest)} now, "
            f"{short(expected_sha256)} when the model version was pinned.",
            f"Restore that source, or register the model again with the new {noun}.",
        )
    module = importlib.import_module(module_name)
    if not hasattr(module, name):
        raise NotFoundError(f"The module {module_name} has no {name}.", "Check the name after the colon.")
    return Loaded(getattr(module, name), reference, digest)


def _source_file(module_name: str, what: str, search_path: Path | None) -> Path:
    if search_path is not None and str(search_path.resolve()) not in sys.path:
        sys.path.insert(0, str(search_path.resolve()))
    try:
        found = importlib.util.find_spec(module_name)
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        noun = what.removeprefix("an ").removeprefix("a ")
        raise NotFoundError(
            f"No source file for the {noun} module {module_name} was found.",
            "Run gradtrail in the folder that holds it, or install the package it belongs to.",
        )
    return Path(found.origin)
