"""Reading the ledger back as nouns: everything other rooms need, in one place.

Every function takes an open connection, on the ledger or on its snapshot. Ids are bound as parameters, never written
into SQL. Absent things are None or empty; what a person typed (`resolve`, `upstream`, `downstream`, `explain`) and
`audit_details` raise NotFoundError.
"""

from __future__ import annotations

from gradtrail.lineage.read.answers import (
    AttributeCount,
    AuditDetails,
    ExplainedExample,
    Explanation,
    LineageNode,
    Quarantined,
    RecordedExample,
    RecordedReport,
)
from gradtrail.lineage.read.audits import (
    audit,
    audit_details,
    audits,
    latest_audit,
    newest_audits,
    report_of,
    unreported_audits,
)
from gradtrail.lineage.read.catalogue import (
    attribute_counts,
    checkpoint,
    checkpoints_of,
    dataset_version,
    events,
    examples,
    fidelities,
    index,
    indexes_of,
    model_version,
    model_versions,
    outputs,
    outputs_of,
    pending_outputs,
    personal_names,
    quarantined,
    run,
    versions_to_audit,
    weighting,
)
from gradtrail.lineage.read.closure import (
    downstream,
    resolve,
    upstream,
)
from gradtrail.lineage.read.explanations import explain

__all__ = [
    "AttributeCount",
    "AuditDetails",
    "ExplainedExample",
    "Explanation",
    "LineageNode",
    "Quarantined",
    "RecordedExample",
    "RecordedReport",
    "attribute_counts",
    "audit",
    "audit_details",
    "audits",
    "checkpoint",
    "checkpoints_of",
    "dataset_version",
    "downstream",
    "events",
    "examples",
    "explain",
    "fidelities",
    "index",
    "indexes_of",
    "latest_audit",
    "model_version",
    "model_versions",
    "newest_audits",
    "outputs",
    "outputs_of",
    "pending_outputs",
    "personal_names",
    "quarantined",
    "report_of",
    "resolve",
    "run",
    "unreported_audits",
    "upstream",
    "versions_to_audit",
    "weighting",
]
