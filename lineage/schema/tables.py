"""The ledger's tables as Arrow: the columns a writer hands over, the key, and what may differ under one key.

The SQL in `schema/` says the same for DuckDB and adds `event_sequence` and `salt` to each; a test holds both together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

_TEXT = pa.string()
_WHOLE = pa.int64()
_REAL = pa.float64()
_TIME = pa.timestamp("us", tz="UTC")
_TEXT_MAP = pa.map_(_TEXT, _TEXT)
_REAL_MAP = pa.map_(_TEXT, _REAL)
_TEXT_LIST = pa.list_(_TEXT)


@dataclass(frozen=True)
class Table:
    """One table of the ledger.

    `labels` are columns that say what a thing was called or where it lay when it was first recorded. They may differ
    when the same id is recorded again; the first ones stay.
    """

    name: str
    schema: pa.Schema
    key: tuple[str, ...]
    labels: frozenset[str] = frozenset()


def _table(name: str, key: str, columns: Mapping[str, pa.DataType], *, nullable: str = "", labels: str = "") -> Table:
    fields = [pa.field(column, kind, nullable=column in nullable.split()) for column, kind in columns.items()]
    return Table(name, pa.schema(fields), tuple(key.split()), frozenset(labels.split()))


_ALL = (
    _table("schema_version", "version", {"version": _WHOLE, "file": _TEXT, "file_sha256": _TEXT}),
    _table(
        "dataset_version",
        "dataset_version_id",
        {"dataset_version_id": _TEXT, "name": _TEXT, "example_count": _WHOLE, "manifest_uri": _TEXT},
        labels="name manifest_uri",
    ),
    _table(
        "example",
        "dataset_version_id example_id",
        {
            "dataset_version_id": _TEXT,
            "example_id": _TEXT,
            "position": _WHOLE,
            "content_sha256": _TEXT,
            "attributes": _TEXT_MAP,
        },
    ),
    _table(
        "training_run",
        "run_id",
        {
            "run_id": _TEXT,
            "experiment_id": _TEXT,
            "name": _TEXT,
            "started_at": _TIME,
            "parameters": _TEXT_MAP,
        },
        nullable="started_at",
        labels="name started_at parameters",
    ),
    _table(
        "checkpoint",
        "checkpoint_id",
        {"checkpoint_id": _TEXT, "format": _TEXT, "byte_size": _WHOLE, "weights_sha256": _TEXT},
    ),
    _table(
        "model_version",
        "model_version_id",
        {
            "model_version_id": _TEXT,
            "name": _TEXT,
            "version": _WHOLE,
            "run_id": _TEXT,
            "dataset_version_id": _TEXT,
            "adapter": _TEXT,
            "adapter_sha256": _TEXT,
        },
    ),
    _table(
        "model_version_checkpoint",
        "model_version_id position",
        {
            "model_version_id": _TEXT,
            "position": _WHOLE,
            "checkpoint_id": _TEXT,
            "step": _WHOLE,
            "learning_rate": _REAL,
            "source_uri": _TEXT,
            "weights_uri": _TEXT,
        },
        nullable="learning_rate",
        labels="source_uri weights_uri",
    ),
    _table(
        "gradient_index",
        "index_id",
        {
            "index_id": _TEXT,
            "checkpoint_id": _TEXT,
            "dataset_version_id": _TEXT,
            "feature_config": _TEXT,
            "covered_parameters": _WHOLE,
            "total_parameters": _WHOLE,
            "uncovered": _TEXT_LIST,
            "indexed_examples": _WHOLE,
            "total_examples": _WHOLE,
            "quarantined": _TEXT_MAP,
            "table_uri": _TEXT,
            "table_version": _WHOLE,
            "rows_sha256": _TEXT,
        },
        labels="table_uri",
    ),
    _table(
        "weighting",
        "weighting_id",
        {"weighting_id": _TEXT, "objective": _TEXT, "group_weights": _REAL_MAP, "evidence": _TEXT},
        labels="evidence",
    ),
    _table(
        "fidelity",
        "fidelity_id",
        {
            "fidelity_id": _TEXT,
            "checkpoint_id": _TEXT,
            "method": _TEXT,
            "weighting_id": _TEXT,
            "metric": _TEXT,
            "value": _REAL,
            "standard_error": _REAL,
            "ceiling": _REAL,
            "queries": _WHOLE,
            "parameters": _TEXT,
            "evidence": _TEXT,
        },
    ),
    _table(
        "output",
        "output_id",
        {
            "output_id": _TEXT,
            "source": _TEXT,
            "record_id": _TEXT,
            "produced_at": _TIME,
            "model_version_id": _TEXT,
            "payload_sha256": _TEXT,
            "target": _TEXT,
        },
    ),
    _table(
        "audit",
        "audit_id",
        {
            "audit_id": _TEXT,
            "model_version_id": _TEXT,
            "method": _TEXT,
            "parameters": _TEXT,
            "weighting_id": _TEXT,
            "policy_sha256": _TEXT,
            "method_notes": _TEXT,
        },
        labels="method_notes",
    ),
    _table(
        "audit_output",
        "audit_id output_id",
        {
            "audit_id": _TEXT,
            "output_id": _TEXT,
            "position": _WHOLE,
            "target": _TEXT,
            "prediction": _TEXT,
            "loss": _REAL,
            "reproduced": pa.bool_(),
            "proponent_mass": _REAL,
            "opponent_mass": _REAL,
        },
        labels="position",
    ),
    _table(
        "audit_index",
        "audit_id position",
        {"audit_id": _TEXT, "position": _WHOLE, "index_id": _TEXT},
    ),
    _table(
        "attribution",
        "audit_id output_id example_id",
        {
            "audit_id": _TEXT,
            "output_id": _TEXT,
            "example_id": _TEXT,
            "side": _TEXT,
            "rank": _WHOLE,
            "score": _REAL,
        },
    ),
    _table(
        "share",
        "audit_id position",
        {
            "audit_id": _TEXT,
            "position": _WHOLE,
            "output_id": _TEXT,
            "side": _TEXT,
            "attribute": _TEXT,
            "value": _TEXT,
            "share": _REAL,
            "training_share": _REAL,
            "interval_low": _REAL,
            "interval_high": _REAL,
        },
        nullable="output_id interval_low interval_high",
    ),
    _table(
        "group_contribution",
        "audit_id position",
        {
            "audit_id": _TEXT,
            "position": _WHOLE,
            "output_id": _TEXT,
            "side": _TEXT,
            "group_name": _TEXT,
            "share": _REAL,
        },
        nullable="output_id",
    ),
    _table(
        "example_influence",
        "audit_id side example_id",
        {"audit_id": _TEXT, "side": _TEXT, "example_id": _TEXT, "rank": _WHOLE, "share": _REAL},
    ),
    _table(
        "finding",
        "audit_id position",
        {
            "audit_id": _TEXT,
            "position": _WHOLE,
            "rule": _TEXT,
            "severity": _TEXT,
            "message": _TEXT,
            "output_id": _TEXT,
            "evidence": _TEXT,
        },
        nullable="output_id",
        labels="message evidence",
    ),
    _table(
        "report",
        "audit_id",
        {
            "audit_id": _TEXT,
            "html_uri": _TEXT,
            "html_sha256": _TEXT,
            "file_sha256": _TEXT_MAP,
            "mlflow_run_id": _TEXT,
            "mlflow_experiment_id": _TEXT,
        },
        nullable="mlflow_run_id mlflow_experiment_id",
        labels="html_uri",
    ),
    _table(
        "quarantine",
        "quarantine_id",
        {"quarantine_id": _TEXT, "source": _TEXT, "record_id": _TEXT, "cause": _TEXT},
    ),
    _table(
        "withdrawal",
        "withdrawal_id",
        {"withdrawal_id": _TEXT, "attribute": _TEXT, "value": _TEXT, "example_count": _WHOLE, "reason": _TEXT},
        nullable="attribute value reason",
        labels="example_count reason",
    ),
    _table(
        "withdrawn_example",
        "withdrawal_id dataset_version_id example_id",
        {"withdrawal_id": _TEXT, "dataset_version_id": _TEXT, "example_id": _TEXT},
    ),
    _table(
        "audit_signature",
        "audit_id",
        {
            "audit_id": _TEXT,
            "public_key_sha256": _TEXT,
            "public_key": _TEXT,
            "statement": _TEXT,
            "signature": _TEXT,
        },
    ),
    _table(
        "personal_attribute",
        "dataset_version_id example_id name",
        {"dataset_version_id": _TEXT, "example_id": _TEXT, "name": _TEXT, "value": _TEXT},
    ),
    _table(
        "erasure",
        "erasure_id position",
        {"erasure_id": _TEXT, "position": _WHOLE, "kind": _TEXT, "subject_id": _TEXT, "reason": _TEXT},
        nullable="reason",
    ),
    _table(
        "erased_row",
        "erased_event table_name position",
        {"erased_event": _WHOLE, "table_name": _TEXT, "position": _WHOLE, "erasure_id": _TEXT},
    ),
    _table(
        "file_revision",
        "kind subject_id revision",
        {"kind": _TEXT, "subject_id": _TEXT, "revision": _WHOLE, "file_sha256": _TEXT_MAP, "reason": _TEXT},
    ),
    _table(
        "index_revision",
        "index_id revision",
        {"index_id": _TEXT, "revision": _WHOLE, "table_version": _WHOLE, "rows_sha256": _TEXT, "reason": _TEXT},
    ),
    _table(
        "watermark",
        "source revision",
        {
            "source": _TEXT,
            "revision": _WHOLE,
            "kind": _TEXT,
            "reached": _TIME,
            "seen": _WHOLE,
            "taken": _WHOLE,
            "sampled_out": _WHOLE,
            "refused": _WHOLE,
            "waiting": _WHOLE,
        },
        nullable="reached",
    ),
    _table(
        "alert",
        "audit_id outlet state",
        {"audit_id": _TEXT, "outlet": _TEXT, "state": _TEXT, "idempotency_key": _TEXT},
    ),
)

TABLES: Mapping[str, Table] = {table.name: table for table in _ALL}

COMMITMENT_SCHEMA = pa.schema(
    [
        pa.field("event_sequence", _WHOLE, nullable=False),
        pa.field("table_name", _TEXT, nullable=False),
        pa.field("position", _WHOLE, nullable=False),
        pa.field("row_key", _TEXT, nullable=False),
        pa.field("row_digest", pa.binary(), nullable=False),
    ]
)
