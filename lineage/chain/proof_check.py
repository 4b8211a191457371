"""Checking an inclusion proof with nothing but the proof and the report: standard library only, easily written again.

A proof is JSON: the rows as recorded, their salts, the hashes beside their way up, the audit's Merkle root and the
event that recorded the audit. The check, step by step; ‖ joins bytes:

1. **Row.** ``sha256(salt ‖ field ‖ field ‖ …)`` over the columns that are not NULL, in the order given; a field is
   ``name ":" tag ":" length ":" bytes`` with tag ``s`` UTF-8 text, ``i`` 64-bit integer, ``r`` IEEE 754 double, ``b``
   one byte 0 or 1; numbers big-endian, the length in decimal. It must be the row's `digest`.
2. **Table.** The leaf ``sha256(0x00 ‖ digest)`` climbs by its `siblings`, a node being ``sha256(0x01 ‖ left ‖ right)``,
   to the root of its table: the tree of RFC 6962, section 2.1, checked as in RFC 9162, section 2.1.3.2. On a level with
   an odd number of nodes the last one goes up as it is; it is never doubled.
3. **Audit.** The leaf of a table is ``sha256(0x02 ‖ {"count":…,"root":…,"table":…})``, that JSON without blanks; a node
   is ``sha256(0x03 ‖ left ‖ right)``. Tables stand in the order of their names. It must climb to `audit_root`.
4. **Event.** ``sha256`` of the JSON of the event's other fields, sorted by name and without blanks (RFC 8785), is its
   `event_hash`; its payload promises the same table roots.
5. **Report.** Audit id, root and event hash are those printed in the report.

The four prefixes keep leaves, nodes and the two trees apart: none can pass for another.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradtrail.errors import NotFoundError, VerificationError

SCHEMA = "gradtrail.proof/1"
ROW_LEAF, ROW_NODE, TABLE_LEAF, TABLE_NODE = b"\x00", b"\x01", b"\x02", b"\x03"
EVIDENCE_NAMES = ("audit_id", "audit_root", "event_hash")

_ENCODINGS: Mapping[str, Callable[[Any], bytes]] = {
    "s": str.encode,
    "i": struct.Struct(">q").pack,
    "r": struct.Struct(">d").pack,
    "b": lambda value: b"\x01" if value else b"\x00",
}
_KINDS: Mapping[str, type] = {"s": str, "i": int, "r": float, "b": bool}
_IN_HTML = re.compile(r'data-evidence="([a-z0-9_]+)">([^<>]*)<')
_REMEDY = "Do not rely on it: have it made again with `gradtrail verify --output`, and ask who changed it."


@dataclass(frozen=True)
class Proven:
    """What a proof that holds shows: these rows were recorded by this event for this output."""

    audit_id: str
    output_id: str
    audit_root: str
    event_hash: str
    rows: tuple[str, ...]


def check_proof(proof: Mapping[str, Any], evidence: Mapping[str, str]) -> Proven:
    """Check a proof against what its report prints; see the steps above.

    Args:
        proof: the parsed proof file.
        evidence: `audit_id`, `audit_root` and `event_hash` as the report has them; see `report_evidence`.

    Raises:
        VerificationError: names the first part that does not hold.
    """
    try:
        return _check(proof, evidence)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, struct.error) as error:
        raise _broken("the proof", f"is not of the form {SCHEMA}: {type(error).__name__} {error}") from error


def climb(leaf: bytes, place: int, count: int, siblings: Sequence[bytes], node_prefix: bytes) -> bytes | None:
    """The root that a leaf leads to (RFC 9162, section 2.1.3.2); None when there are too few or too many siblings."""
    if not 0 <= place < count:
        return None
    last, node = count - 1, leaf
    for sibling in siblings:
        if last == 0:
            return None
        if place % 2 or place == last:
            node = hashlib.sha256(node_prefix + sibling + node).digest()
            while place % 2 == 0 and place:
                place, last = place // 2, last // 2
        else:
            node = hashlib.sha256(node_prefix + node + sibling).digest()
        place, last = place // 2, last // 2
    return node if last == 0 else None


def row_digest(salt: bytes, columns: Sequence[Sequence[Any]]) -> bytes:
    """Step 1: the digest of a row from its salt and its columns, each as name, tag and value."""
    digest = hashlib.sha256(salt)
    for name, tag, value in columns:
        if value is not None:
            if type(value) is not _KINDS[tag]:
                raise ValueError(f"{name} is not of type {tag}")
            encoded = _ENCODINGS[tag](value)
            digest.update(f"{name}:{tag}:{len(encoded)}:".encode() + encoded)
    return digest.digest()


def table_leaf(name: str, count: int, root: str) -> bytes:
    """The leaf of a table in the tree of an audit."""
    return hashlib.sha256(TABLE_LEAF + _json({"count": count, "root": root, "table": name})).digest()


def report_evidence(report: Path) -> dict[str, str]:
    """What a report, HTML or JSON, prints of its audit: id, root, event hash.

    Raises:
        NotFoundError: there is no such file.
        VerificationError: the file is no report, or prints one of them not exactly once.
    """
    if not report.is_file():
        raise NotFoundError(f"There is no report {report}.", "Give the path of report.html or report.json.")
    text = report.read_text("utf-8", errors="replace")
    try:
        found = [(name, json.loads(text)["evidence"][name]) for name in EVIDENCE_NAMES]
    except (ValueError, KeyError, TypeError):
        found = [pair for pair in _IN_HTML.findall(text) if pair[0] in EVIDENCE_NAMES]
    if sorted(name for name, _ in found) != sorted(EVIDENCE_NAMES):
        raise _broken(f"the report {report}", "does not print audit id, Merkle root and event hash exactly once each")
    return {name: str(value) for name, value in found}


def _check(proof: Mapping[str, Any], evidence: Mapping[str, str]) -> Proven:
    if proof["schema"] != SCHEMA:
        raise ValueError(f"schema {proof['schema']!r}")
    event, tables = proof["event"], proof["tables"]
    names = []
    for row in proof["rows"]:
        names.append(_row_holds(proof, row, tables[row["table"]]))
    if not names:
        raise ValueError("it holds no row")
    for name, table in tables.items():
        leaf = table_leaf(name, table["count"], table["root"])
        climbed = climb(leaf, table["place"], table["tables"], _hashes(table["siblings"]), TABLE_NODE)
        if climbed != _hash(proof["audit_root"]):
            raise _broken(f"table {name}", "its root, count or siblings do not lead to the root of the audit")
    if hashlib.sha256(_json(event)).hexdigest() != proof["event_hash"]:
        raise _broken(f"event {event['sequence']}", "its fields do not hash to the event hash")
    promised = json.loads(event["payload"])["rows"]
    for name, table in tables.items():
        if promised.get(name) != {"count": table["count"], "root": table["root"]}:
            raise _broken(f"event {event['sequence']}", f"it promises another root for table {name}")
    if event["subject"] != proof["audit_id"]:
        raise _broken(f"event {event['sequence']}", "it recorded another audit")
    for name in EVIDENCE_NAMES:
        if proof[name] != evidence[name]:
            raise _broken(name, f"is {proof[name]} in the proof and {evidence[name]} in the report")
    return Proven(proof["audit_id"], proof["output_id"], proof["audit_root"], proof["event_hash"], tuple(names))


def _row_holds(proof: Mapping[str, Any], row: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    values = {name: value for name, _, value in row["columns"]}
    label = f"row {row['place']} of {row['table']} (example {values['example_id']})" if "example_id" in values else ""
    label = label or f"row {row['place']} of {row['table']}"
    if (values["audit_id"], values["output_id"]) != (proof["audit_id"], proof["output_id"]):
        raise _broken(label, "it is about another audit or output")
    if row_digest(_bytes(row["salt"]), row["columns"]) != _hash(row["digest"]):
        raise _broken(label, "its columns, its salt or its digest were changed")
    leaf = hashlib.sha256(ROW_LEAF + _hash(row["digest"])).digest()
    if climb(leaf, row["place"], table["count"], _hashes(row["siblings"]), ROW_NODE) != _hash(table["root"]):
        raise _broken(label, f"its siblings, its place or the root of {row['table']} were changed")
    return label


def _hash(text: str) -> bytes:
    value = _bytes(text)
    if len(value) != hashlib.sha256().digest_size:
        raise ValueError(f"{text!r} is not a sha256")
    return value


def _hashes(texts: Sequence[str]) -> list[bytes]:
    return [_hash(text) for text in texts]


def _bytes(text: str) -> bytes:
    value = bytes.fromhex(text)
    if value.hex() != text:
        raise ValueError(f"{text!r} is not lower-case hexadecimal")
    return value


def _json(value: Mapping[str, Any]) -> bytes:
    # Equal to RFC 8785 for what stands here: text and whole numbers under ASCII names.
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _broken(subject: str, message: str) -> VerificationError:
    return VerificationError(f"The proof does not hold at {subject}: {message}.", _REMEDY)
