"""What the ledger answers with, where the nouns alone do not say enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gradtrail.nouns import (
    Attribution,
    Audit,
    Checkpoint,
    DatasetVersion,
    ExampleInfluence,
    Finding,
    GroupContribution,
    ModelVersion,
    Output,
    OutputResult,
    Run,
    Share,
)


@dataclass(frozen=True)
class RecordedExample:
    """An example of a dataset version: its manifest row and its place in the manifest, from 0."""

    example_id: str
    content_sha256: str
    attributes: Mapping[str, str]
    position: int


@dataclass(frozen=True)
class AttributeCount:
    """How many examples of a dataset version carry one value of an attribute."""

    attribute: str
    value: str
    examples: int


@dataclass(frozen=True)
class Quarantined:
    """A record that was refused, and why."""

    source: str
    record_id: str
    cause: str
    recorded_at: datetime


@dataclass(frozen=True)
class RecordedReport:
    """The report of an audit; `file_sha256` has the digest, by name, of the files beside the HTML."""

    audit_id: str
    html_uri: str
    html_sha256: str
    file_sha256: Mapping[str, str]
    mlflow_run_id: str | None
    mlflow_experiment_id: str | None
    recorded_at: datetime


@dataclass(frozen=True)
class AuditTold:
    """What an audit says of its outputs.

    Results are in the audit's order; attributions by output in that order, side (proponents first) and rank; shares
    with the mean over the audit first, by attribute and falling share; findings as given.
    """

    audit: Audit
    recorded_at: datetime
    event_sequence: int
    dataset_version_id: str
    method_notes: Mapping[str, Any]
    results: tuple[OutputResult, ...]
    attributions: tuple[Attribution, ...]
    shares: tuple[Share, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class AuditDetails(AuditTold):
    """An audit with all its evidence: what a report needs from the ledger.

    Influences are by side and rank; group contributions as given, none for an audit from before they were recorded.
    """

    model_version: ModelVersion
    influences: tuple[ExampleInfluence, ...]
    group_contributions: tuple[GroupContribution, ...]


@dataclass(frozen=True)
class ExplainedExample:
    """An attribution with what the ledger knows of the example.

    `content_sha256` and `position` are None, and `attributes` empty, when the example is no longer in the ledger.
    """

    attribution: Attribution
    content_sha256: str | None
    position: int | None
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class Explanation:
    """One output, the chain behind it, and what the audit said. Everything from `audit` on is empty before an audit.

    `dataset_version` is the one the audit scored against, else the one the model was trained on. `measured_with` are
    the versions of libraries that measured its index; None where an older gradtrail did.
    """

    output: Output
    model_version: ModelVersion
    run: Run
    checkpoint: Checkpoint
    dataset_version: DatasetVersion
    audit: Audit | None = None
    audited_at: datetime | None = None
    method_notes: Mapping[str, Any] | None = None
    result: OutputResult | None = None
    proponents: tuple[ExplainedExample, ...] = ()
    opponents: tuple[ExplainedExample, ...] = ()
    shares: tuple[Share, ...] = ()
    findings: tuple[Finding, ...] = ()
    report: RecordedReport | None = None
    measured_with: Mapping[str, str] | None = None


@dataclass(frozen=True)
class LineageNode:
    """One node of a closure, reached by its shortest way.

    `relation` and `parent` (a node id of kind `parent_kind`) name the edge it was reached by; all are empty for a
    start node, whose `depth` is 0.
    """

    node_id: str
    kind: str
    label: str
    depth: int
    relation: str
    parent: str
    parent_kind: str
