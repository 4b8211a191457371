"""Which adapter measured an index, and whether it is the one of a model version."""

from __future__ import annotations

from collections.abc import Iterable

import duckdb

from gradtrail.lineage.read.catalogue import fidelities, indexes_of
from gradtrail.nouns import Fidelity, Index, ModelVersion

Connection = duckdb.DuckDBPyConnection
Adapter = tuple[str, str]
"""Class and digest of the source of an adapter: what every ledger knows of it."""


def is_measured_by(connection: Connection, index: Index, version: ModelVersion) -> bool | None:
    """Whether the adapter of a model version is the one that measured an index; None where nobody can tell.

    An index of an older gradtrail does not say it. It can be told where only one adapter was registered with the same
    weights and data before the index was recorded.
    """
    if index.measured_by is not None and version.measured_by is not None:
        return dict(index.measured_by) == dict(version.measured_by)
    if index.measured_by is not None:
        return (_class_of(str(index.adapter)), index.adapter_sha256) == _adapter_of(version)
    possible = possible_adapters(connection, index)
    if _adapter_of(version) not in possible:
        return False
    return True if len(possible) == 1 else None


def measured_by(connection: Connection, indexes: Iterable[Index], version: ModelVersion) -> list[Index]:
    """Those of the indexes that the adapter of a model version measured, as far as it can be told."""
    return [index for index in indexes if is_measured_by(connection, index, version)]


def own_indexes(connection: Connection, version: ModelVersion) -> list[Index]:
    """The indexes that a version's adapter measured of its data at its serving checkpoint, as they were recorded."""
    found = indexes_of(connection, version.checkpoint_ids[-1])
    return measured_by(
        connection, (each for each in found if each.dataset_version_id == version.dataset_version_id), version
    )


def own_fidelities(connection: Connection, version: ModelVersion, before: int | None = None) -> list[Fidelity]:
    """What was measured on a version's serving checkpoint by its own adapter, the latest first; see `fidelities`."""
    own = {index.index_id for index in own_indexes(connection, version)}
    return [
        found
        for found in fidelities(connection, version.checkpoint_ids[-1], before)
        if own.issuperset(found.evidence.get("index_ids", ())[-1:])
    ]


def audits_by_version(connection: Connection, index_id: str) -> dict[str, list[str]]:
    """The audits that scored an index, by the model version that each is of, in the order they were recorded."""
    query = """
        SELECT audit.model_version_id, audit_id FROM audit JOIN audit_index USING (audit_id)
        WHERE index_id = ? ORDER BY audit.event_sequence"""
    found: dict[str, list[str]] = {}
    for model_version_id, audit_id in connection.execute(query, [index_id]).fetchall():
        found.setdefault(model_version_id, []).append(audit_id)
    return found


def possible_adapters(connection: Connection, index: Index) -> frozenset[Adapter]:
    """The adapters that were registered with the weights and data of an index when it was recorded."""
    query = """
        SELECT DISTINCT version.adapter, version.adapter_sha256
        FROM model_version AS version JOIN model_version_checkpoint AS member USING (model_version_id)
        WHERE member.checkpoint_id = $checkpoint AND version.dataset_version_id = $dataset
            AND version.event_sequence < (SELECT event_sequence FROM gradient_index WHERE index_id = $index)"""
    asked = {"checkpoint": index.checkpoint_id, "dataset": index.dataset_version_id, "index": index.index_id}
    return frozenset((_class_of(adapter), sha256) for adapter, sha256 in connection.execute(query, asked).fetchall())


def _adapter_of(version: ModelVersion) -> Adapter:
    return _class_of(version.adapter), version.adapter_sha256


def _class_of(reference: str) -> str:
    """The class of `module:Class`: the module may be found under another name."""
    return reference.rpartition(":")[2]
