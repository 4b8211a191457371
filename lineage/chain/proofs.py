"""The Merkle root of an audit, and proofs that single rows are under it; `proof_check` says how both are defined.

The root covers every row that the audit's event recorded: audit, indexes, outputs, attributions, shares, influences and
findings. It does not cover the report, whose own digest can be known only after the root was written into it: that is
what the event after, of kind `report`, records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

import duckdb

from gradtrail.errors import NotFoundError, VerificationError
from gradtrail.lineage.chain.integrity import key_text, row_digests, row_keys
from gradtrail.lineage.chain.proof_check import ROW_LEAF, ROW_NODE, SCHEMA, TABLE_NODE, table_leaf
from gradtrail.lineage.chain.row_check import UNREADABLE, erased_positions
from gradtrail.lineage.connections import first_row
from gradtrail.lineage.schema.statements import statement
from gradtrail.lineage.schema.tables import TABLES

PROVEN_TABLES = ("audit_output", "attribution")
_TAGS = {"string": "s", "int64": "i", "double": "r", "bool": "b"}

Levels = list[list[bytes]]


@dataclass(frozen=True)
class AuditEvidence:
    """What ties an audit to the ledger: its event, and the Merkle root over the rows that event recorded."""

    audit_id: str
    audit_root: str
    event_sequence: int
    event_hash: str


def audit_evidence(connection: duckdb.DuckDBPyConnection, audit_id: str) -> AuditEvidence:
    """Root and event of an audit.

    Raises:
        NotFoundError: no such audit.
        VerificationError: its event is gone, or does not say what was recorded.
    """
    event = _event(connection, audit_id)
    return AuditEvidence(audit_id, audit_root(event["payload"]), event["sequence"], event["event_hash"])


def audit_root(payload: str) -> str:
    """The Merkle root over all rows of an audit, from the payload of its event; hexadecimal.

    Raises:
        VerificationError: the payload does not say what was recorded.
    """
    return _tables_tree(_promises(payload))[-1][0].hex()


def inclusion_proof(connection: duckdb.DuckDBPyConnection, output_id: str, audit_id: str = "") -> dict[str, Any]:
    """A proof of everything an audit, by default the newest, recorded about one output; plain values for JSON.

    Raises:
        NotFoundError: the output is in no such audit.
        VerificationError: a row or the event of the audit is gone or is not what was recorded.
    """
    query = """
        SELECT audit_id FROM audit_output JOIN audit USING (audit_id) WHERE output_id = ? AND (? = '' OR audit_id = ?)
        ORDER BY audit.event_sequence DESC LIMIT 1"""
    audited = first_row(connection, query, [output_id, audit_id, audit_id])
    if audited is None:
        raise NotFoundError(
            f"The output {output_id} is in no audit{f' {audit_id}' if audit_id else ''}.",
            "Audit it first: gradtrail audit NAME@alias.",
        )
    event = _event(connection, audited[0])
    promises = _promises(event["payload"])
    names = sorted(promises)
    above = _tables_tree(promises)
    rows, tables = [], {}
    for name in PROVEN_TABLES:
        found = _rows(connection, name, event, output_id)
        if found:
            rows += found
            place = names.index(name)
            tables[name] = {
                **promises[name],
                "place": place,
                "tables": len(names),
                "siblings": [each.hex() for each in _siblings(above, place)],
            }
    return {
        "schema": SCHEMA,
        "output_id": output_id,
        "audit_id": audited[0],
        "audit_root": above[-1][0].hex(),
        "event_hash": event["event_hash"],
        "event": {key: value for key, value in event.items() if key != "event_hash"},
        "tables": tables,
        "rows": rows,
    }


def _event(connection: duckdb.DuckDBPyConnection, audit_id: str) -> dict[str, Any]:
    query = """
        SELECT sequence, recorded_at, event.kind, event.subject, payload, previous_hash, event_hash
        FROM audit LEFT JOIN event ON event.sequence = audit.event_sequence WHERE audit_id = ?"""
    row = first_row(connection, query, [audit_id])
    if row is None:
        raise NotFoundError(f"There is no audit {audit_id} in the ledger.", "`gradtrail report` lists the audits.")
    if row[0] is None:
        raise VerificationError(f"The event that recorded audit {audit_id} is gone.", "Run `gradtrail verify`.")
    names = ("sequence", "recorded_at", "kind", "subject", "payload", "previous_hash", "event_hash")
    event = dict(zip(names, row, strict=True))
    event["recorded_at"] = event["recorded_at"].astimezone(UTC).isoformat(timespec="microseconds")
    return event


def _rows(
    connection: duckdb.DuckDBPyConnection, name: str, event: Mapping[str, Any], output_id: str
) -> list[dict[str, Any]]:
    table, sequence = TABLES[name], event["sequence"]
    promised = connection.execute(
        "SELECT row_key, row_digest FROM row_commitment WHERE event_sequence = ? AND table_name = ? ORDER BY position",
        [sequence, name],
    ).fetchall()
    places = {key: place for place, (key, _) in enumerate(promised)}
    levels = _levels([hashlib.sha256(ROW_LEAF + digest).digest() for _, digest in promised], ROW_NODE)
    template = "SELECT $columns, salt FROM $table WHERE event_sequence = ? AND output_id = ? ORDER BY $keys"
    query = statement(template, columns=", ".join(table.schema.names), table=name, keys=", ".join(table.key))
    data = connection.sql(query, params=[sequence, output_id]).to_arrow_table()
    salts = data.column("salt").to_pylist()
    recorded = data.select(table.schema.names).cast(table.schema)
    tags = [_TAGS[str(field.type)] for field in table.schema]
    rows = []
    digests = row_digests(table, recorded, salts)
    for key, digest, salt, values in zip(row_keys(table, recorded), digests, salts, recorded.to_pylist(), strict=True):
        place = places.get(key_text(key))
        if place is None or promised[place][1] != digest:
            raise VerificationError(
                f"The row {name} {key_text(key)} is not as event {sequence} recorded it.", "Run `gradtrail verify`."
            )
        rows.append(
            {
                "table": name,
                "place": place,
                "columns": [list(each) for each in zip(table.schema.names, tags, values.values(), strict=True)],
                "salt": salt.hex(),
                "digest": digest.hex(),
                "siblings": [each.hex() for each in _siblings(levels, place)],
            }
        )
    shown = {row["place"] for row in rows}
    erased = erased_positions(connection).get((sequence, name), {})
    for place, (key, _) in enumerate(promised):
        if json.loads(key)[1] == output_id and place not in shown and place not in erased:
            raise VerificationError(
                f"The row {name} {key} that event {sequence} recorded is gone.", "Run `gradtrail verify`."
            )
    return rows


def _promises(payload: str) -> dict[str, dict[str, Any]]:
    try:
        promises = {
            name: {"count": int(each["count"]), "root": str(each["root"])}
            for name, each in json.loads(payload)["rows"].items()
        }
    except UNREADABLE:
        promises = {}
    if not promises:
        raise VerificationError("The event of an audit does not say what it recorded.", "Run `gradtrail verify`.")
    return promises


def _tables_tree(promises: Mapping[str, Mapping[str, Any]]) -> Levels:
    leaves = [table_leaf(name, promises[name]["count"], promises[name]["root"]) for name in sorted(promises)]
    return _levels(leaves, TABLE_NODE)


def _levels(leaves: Sequence[bytes], node_prefix: bytes) -> Levels:
    """The tree, level by level; a last node without a partner goes up as it is, which gives the tree of RFC 6962."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        below = levels[-1]
        pairs = zip(below[::2], below[1::2], strict=False)
        above = [hashlib.sha256(node_prefix + left + right).digest() for left, right in pairs]
        levels.append(above + ([below[-1]] if len(below) % 2 else []))
    return levels


def _siblings(levels: Levels, place: int) -> list[bytes]:
    beside = []
    for level in levels[:-1]:
        partner = place ^ 1
        if partner < len(level):
            beside.append(level[partner])
        place //= 2
    return beside
