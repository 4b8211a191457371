"""Records of outputs as canonical bytes and back: what a payload is."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from gradtrail.digests import EXACT_INTEGER, canonical_json
from gradtrail.errors import DataError
from gradtrail.storage.sources.plain_values import parsed_time, plain_value

RECORD_BYTES_LIMIT = 16 * 1024 * 1024
_BASE64 = "$base64"
_INTEGER = "$integer"
_DIGITS = re.compile(r"-?[0-9]{1,4000}", re.ASCII)
_DEEPEST = 64


def record_payload(record: Mapping[str, Any], *, name: str = "A record") -> bytes:
    """The canonical JSON (RFC 8785) of a record; equal records give equal bytes, whatever file they came in.

    Arrays and tuples become lists, bytes become {"$base64": text}, times ISO 8601 in UTC, dates ISO 8601, whole numbers
    that JSON readers would round {"$integer": digits}, and the rest as `plain_value` says. A field that is null is left
    out, because a table has a null where a line of JSON has nothing.

    Args:
        name: what the record is called in messages.

    Raises:
        DataError: a value that is not finite, has no such form, or a record beyond 16 MB; the message names the field.
    """
    content: dict[str, bytes] = {}
    for field, value in record.items():
        if value is None:
            continue
        try:
            content[field] = canonical_json({_text_key(field, field, name): _plain(value, field, name)})[1:-1]
        except (ValueError, RecursionError) as fault:
            raise DataError(
                f"{name}: the field {field!r} has no JSON form: {fault}.", "Mend or drop the field."
            ) from fault
    payload = b"{" + b",".join(content[field] for field in sorted(content, key=_canonical_order)) + b"}"
    if len(payload) > RECORD_BYTES_LIMIT:
        largest = max(content, key=lambda field: len(content[field]))
        raise DataError(
            f"{name} takes {len(payload):,} bytes, most of them in the field {largest!r}; the limit is 16 MB.",
            "Store large inputs elsewhere and keep a reference, or an encoded form such as PNG, in the record.",
        )
    return payload


def payload_record(payload: bytes) -> dict[str, Any]:
    """The record a payload was made from: {"$base64": text} becomes bytes again, {"$integer": digits} a number.

    Times, and what else became text, stay so.

    Raises:
        DataError: the bytes are not those of a record.
    """
    try:
        record = json.loads(payload)
    except (ValueError, RecursionError) as fault:
        raise DataError(f"A payload is not JSON: {fault}.", "Delete the output and add it again.") from fault
    if not isinstance(record, dict):
        raise DataError("A payload is JSON, but not a record.", "Delete the output and add it again.")
    return {field: _rich(value) for field, value in record.items()}


def utc_time(value: Any, name: str) -> datetime:
    """A time with its zone, from a datetime or ISO 8601 text, as a datetime in UTC.

    Raises:
        DataError: it is no time, or it has no zone: gradtrail does not guess one.
    """
    if isinstance(value, str | datetime):
        try:
            # By way of ISO text, so that pandas' nanoseconds end as microseconds.
            moment = parsed_time(value if isinstance(value, str) else value.isoformat())
            if moment.tzinfo is not None:
                return moment.astimezone(UTC)
        except (ValueError, OverflowError) as fault:
            raise DataError(
                f"{name}: {value!r} is not a time: {fault}.", "Write it as 2026-01-31T12:00:00Z."
            ) from fault
        raise DataError(
            f"{name}: {value!s} has no time zone.", "Write it as 2026-01-31T12:00:00Z, or with its offset from UTC."
        )
    raise DataError(f"{name}: {value!r} is not a time.", "Write it as text such as 2026-01-31T12:00:00Z.")


def _plain(value: Any, field: str, name: str, depth: int = 0) -> Any:
    """`value` as JSON values. `field` is the path to it, for messages."""
    if depth > _DEEPEST:
        raise DataError(f"{name}: the field {field.partition('[')[0]!r} is nested too deeply.", "Flatten the field.")
    if hasattr(value, "tolist") and getattr(value, "dtype", None) is not None:
        value = _from_array(value, field, name)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{field}[{place}]", name, depth + 1) for place, item in enumerate(value)]
    if isinstance(value, Mapping):
        if set(value) == {_BASE64} and _decoded(value[_BASE64]) is None:
            raise DataError(f"{name}: the field {field!r} says base64 but is not.", "Encode the bytes again.")
        if set(value) == {_INTEGER}:
            return _exact_integer(value[_INTEGER], field, name)
        members = {_text_key(key, field, name): item for key, item in value.items() if item is not None}
        return {key: _plain(item, f"{field}.{key}", name, depth + 1) for key, item in members.items()}
    return _plain_scalar(value, field, name)


def _plain_scalar(value: Any, field: str, name: str) -> Any:
    value = plain_value(value)
    if isinstance(value, int) and abs(value) > EXACT_INTEGER:
        return {_INTEGER: str(value)}
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(f"{name}: the field {field!r} is {value}.", "Leave the field out where there is no value.")
        return float(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return {_BASE64: base64.b64encode(value).decode()}
    if isinstance(value, datetime):
        return utc_time(value, f"{name}: the field {field!r}").isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if value is None or isinstance(value, str | bool | int):
        return value
    raise DataError(
        f"{name}: the field {field!r} is a {type(value).__name__}, which has no JSON form.",
        "Convert it to a number, text, list or bytes.",
    )


def _exact_integer(digits: Any, field: str, name: str) -> Any:
    number = _integer(digits)
    if number is None:
        raise DataError(f"{name}: the field {field!r} says integer but is not.", "Write its decimal digits as text.")
    return _plain_scalar(number, field, name)


def _from_array(value: Any, field: str, name: str) -> Any:
    if getattr(value.dtype, "kind", "") in "mM":
        raise DataError(f"{name}: the field {field!r} holds times of numpy, which have no zone.", "Give times a zone.")
    return value.tolist()


def _text_key(key: Any, field: str, name: str) -> str:
    if not isinstance(key, str):
        raise DataError(f"{name}: the field {field!r} has the key {key!r}, which is not text.", "Make keys text.")
    return key


def _canonical_order(field: str) -> bytes:
    return field.encode("utf-16-be")  # RFC 8785, section 3.2.3


def _rich(value: Any) -> Any:
    if isinstance(value, list):
        return [_rich(item) for item in value]
    if isinstance(value, dict):
        content: bytes | int | None = None
        if set(value) == {_BASE64}:
            content = _decoded(value[_BASE64])
        elif set(value) == {_INTEGER}:
            content = _integer(value[_INTEGER])
        return {key: _rich(item) for key, item in value.items()} if content is None else content
    return value


def _integer(digits: Any) -> int | None:
    return int(digits) if isinstance(digits, str) and _DIGITS.fullmatch(digits) else None


def _decoded(text: Any) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except binascii.Error:
        return None
