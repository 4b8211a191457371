"""Code that users bring: only what an allow-list names is imported, from the bytes whose digest is known."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gradtrail.digests import sha256_bytes, short
from gradtrail.errors import NotFoundError, UntrustedCodeError, UsageError
from gradtrail.hashed_imports import import_hashed, locate
from gradtrail.own_sources import code_of, code_sha256


@dataclass(frozen=True)
class Loaded:
    """What a reference names, the `module:name` itself, and the sha256 of that module's source file.

    `code_sha256` is the digest of all code that the module is made of: of that file, where there is no other.
    """

    value: Any
    reference: str
    source_sha256: str
    code_sha256: str


def split_reference(reference: str, what: str) -> tuple[str, str]:
    """Module and name of `module:name`; `what` says in errors what it should name.

    Raises:
        UsageError: if it is malformed.
    """
    module_name, separator, name = reference.partition(":")
    if not separator or not name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise UsageError(f"{reference!r} does not name {what}.", "Write it as module:Class or module:function.")
    return module_name, name


def reference_sha256(reference: str, what: str, search_path: Path | None = None) -> str:
    """Digest of all code behind `module:name`, found without running any of it; see `own_sources.code_of`.

    Raises:
        UsageError: if the reference is malformed.
        NotFoundError: if the module cannot be found or has no source file.
    """
    module_name = split_reference(reference, what)[0]
    own = _source_file(module_name, what, search_path)
    root, code = code_of(module_name, own)
    return code_sha256(root, own, code)


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
        expected_sha256: digest of its code that was pinned earlier, if any; or of the module's source file alone, as
            older releases pinned it.
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
    own = _source_file(module_name, what, search_path)
    root, code = code_of(module_name, own)
    digest, whole = sha256_bytes(code[own]), code_sha256(root, own, code)
    if expected_sha256 is not None and expected_sha256 not in (whole, digest):
        among = "" if len(code) == 1 else f" (or one of the {len(code)} files of code that it is made of)"
        raise UntrustedCodeError(
            f"The source of the {noun} {reference} changed{among}: {short(whole)} now, "
            f"{short(expected_sha256)} when the model version was pinned.",
            f"Restore that source, or register the model again with the new {noun}.",
        )
    module = import_hashed(module_name, root, code, pinned=expected_sha256 is not None)
    if not hasattr(module, name):
        raise NotFoundError(f"The module {module_name} has no {name}.", "Check the name after the colon.")
    return Loaded(getattr(module, name), reference, digest, whole)


def _source_file(module_name: str, what: str, search_path: Path | None) -> Path:
    if search_path is not None and str(search_path.resolve()) not in sys.path:
        sys.path.insert(0, str(search_path.resolve()))
    found = locate(module_name)
    if found is None or not found.is_file():
        noun = what.removeprefix("an ").removeprefix("a ")
        raise NotFoundError(
            f"No source file for the {noun} module {module_name} was found.",
            "Run gradtrail in the folder that holds it, or install the package it belongs to.",
        )
    return found
