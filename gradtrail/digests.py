"""Digests and canonical JSON: how every id in gradtrail is made."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import rfc8785

EXACT_INTEGER = 2**53 - 1
"""Integers up to here are written as they are by RFC 8785."""


def canonical_json(value: Any) -> bytes:
    """Serialise `value` by RFC 8785, so that equal values give equal bytes on every machine.

    Raises:
        ValueError: for NaN, infinities, integers beyond 2**53 and values that JSON cannot hold.
    """
    return rfc8785.dumps(value)


def sha256_bytes(content: bytes) -> str:
    """Lower-case hexadecimal sha256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def sha256_json(value: Any) -> str:
    """Lower-case hexadecimal sha256 of the canonical JSON of `value`."""
    return sha256_bytes(canonical_json(value))


def sha256_file(path: Path) -> str:
    """Lower-case hexadecimal sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def short(identifier: str, length: int = 12) -> str:
    """The first characters of a digest, for people to read; never used as a key."""
    return identifier[:length]


def content_sha256(inputs: Any, target: Any) -> str:
    """Digest of what an example contains: its inputs and its target, not its id or attributes.

    Tensors and arrays count with dtype and shape, so that a reshaped or re-typed example is another content.

    Raises:
        TypeError: for a value that has no defined bytes.
    """
    digest = hashlib.sha256()
    _feed(digest, inputs)
    _feed(digest, target)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu().numpy()
    if hasattr(value, "__array__") and hasattr(value, "dtype"):
        _frame(digest, b"array", f"{value.dtype.str}{tuple(value.shape)}".encode())
        _frame(digest, b"data", value.tobytes())
    elif isinstance(value, bytes):
        _frame(digest, b"bytes", value)
    elif isinstance(value, str):
        _frame(digest, b"text", value.encode())
    elif type(value) is int and abs(value) <= EXACT_INTEGER:
        _frame(digest, b"json", b"%d" % value)
    elif type(value) is int:
        _frame(digest, b"integer", b"%d" % value)
    elif value is None or isinstance(value, bool | int | float):
        _frame(digest, b"json", canonical_json(value))
    elif isinstance(value, list | tuple):
        _frame(digest, b"list", str(len(value)).encode())
        for item in value:
            _feed(digest, item)
    elif isinstance(value, dict):
        _frame(digest, b"dict", str(len(value)).encode())
        for key in sorted(value):
            _frame(digest, b"key", str(key).encode())
            _feed(digest, value[key])
    else:
        raise TypeError(f"no defined bytes for a value of type {type(value).__name__}")


def _frame(digest: Any, kind: bytes, content: bytes) -> None:
    digest.update(kind + b":" + str(len(content)).encode() + b":" + content)
