"""The history of audits with the fidelity of each, from the ledger alone, and the figures that MLflow draws of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from gradtrail.digests import canonical_json, sha256_bytes, short
from gradtrail.lineage.read.audit_history import PastAudit, fidelity_events, past_audits
from gradtrail.nouns import SEVERITIES, Fidelity
from gradtrail.reports.index.model import IndexedAudit
from gradtrail.reports.table import KNOWN_LABELS, WRONG_OUTPUTS
from gradtrail.reports.write import PARQUET_NAME
from gradtrail.tasks.core.measured_fidelity import audited_fidelity, backed_fidelity
from gradtrail.tasks.core.workspace import Workspace

DRAWN_ATTRIBUTES = ("source", "licence")
_LONGEST_VALUE = 100


def audit_history(
    connection: duckdb.DuckDBPyConnection, model: str | None = None, audit_ids: Collection[str] | None = None
) -> list[IndexedAudit]:
    """The audits of a model, or of all models, in the order they were recorded, each with its fidelity.

    Those of `audit_ids` where it is given.
    """
    events = fidelity_events(connection)
    known: dict[bytes, Fidelity | None] = {}

    def fidelity(past: PastAudit) -> Fidelity | None:
        measured = events.get(past.checkpoint_id, [])
        asked = (
            past.checkpoint_id,
            past.method,
            dict(past.parameters),
            past.weighting_id,
            list(past.index_ids),
            past.target,
        )
        # Audits alike between two calibrations share one figure.
        key = canonical_json([*asked, bisect_left(measured, past.event_sequence)])
        if key not in known:
            found = audited_fidelity(connection, *asked, before=past.event_sequence) if measured else None
            known[key] = backed_fidelity(found)
        return known[key]

    return [IndexedAudit(past, fidelity(past)) for past in past_audits(connection, model, audit_ids)]


def audit_metrics(audit: IndexedAudit, wrong: int | None, least_share: float = 0.0) -> dict[str, float]:
    """The figures of an audit as MLflow metrics; shares of support by source and licence from `least_share` on."""
    past, fidelity = audit.past, audit.fidelity
    metrics = {
        "outputs_not_reproduced": float(past.not_reproduced),
        "coverage_parameters": past.parameter_share,
        "coverage_examples": past.example_share,
    }
    if wrong is not None:
        metrics["outputs_wrong"] = float(wrong)
    if fidelity is not None:
        metrics |= {
            "fidelity": fidelity.value,
            "fidelity_error": fidelity.standard_error,
            "fidelity_ceiling": fidelity.ceiling,
        }
    for severity in SEVERITIES:
        metrics[f"findings_{severity}"] = float(past.findings(severity))
    for share in past.shares:
        if share.side == "proponent" and share.attribute in DRAWN_ATTRIBUTES and share.share >= least_share:
            metrics[f"share_{share.attribute}/{_metric_name(share.value)}"] = share.share
    return metrics | {"outputs": float(past.outputs)}


def wrong_outputs(workspace: Workspace, audit_id: str) -> int | None:
    """How many outputs contradict their true label, by the report on disk; None where it tells of no label."""
    path: Path = workspace.reports / audit_id / PARQUET_NAME
    try:
        said = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return None  # gone or damaged: `gradtrail verify` names it, and a trend does without
    return int(said[WRONG_OUTPUTS]) if int(said.get(KNOWN_LABELS, 0)) else None


def _metric_name(value: str) -> str:
    """A value as MLflow lets a metric be called; one that had to change carries a digest, so that no two are one."""
    kept = "".join(c if c.isalnum() or c in "_-. " else "_" for c in value)[:_LONGEST_VALUE]
    usable = kept == value and kept.strip(". ") != ""
    return kept if usable else f"{kept or 'unnamed'} {short(sha256_bytes(value.encode('utf-8')), 6)}"
