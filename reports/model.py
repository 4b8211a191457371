"""The report as values: everything a reader is told about one audit, before it becomes HTML, JSON or Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from gradtrail.nouns import (
    Audit,
    Checkpoint,
    Coverage,
    DatasetVersion,
    Fidelity,
    Finding,
    GroupContribution,
    ModelVersion,
    Output,
    OutputResult,
    Preview,
    PreviewMode,
    Run,
    Share,
    Side,
    Weighting,
    Wording,
)


@dataclass(frozen=True)
class ExampleCard:
    """One training example as the report shows it.

    `share` is its part of that side's mass, 0 to 1: for one output in an `OutputSection`, the mean over all outputs in
    `Overall`, where `score` is None because scores of different outputs do not add up.
    """

    example_id: str
    content_sha256: str
    attributes: Mapping[str, str]
    preview: Preview | None
    score: float | None
    rank: int
    share: float | None
    side: Side


@dataclass(frozen=True)
class LineageStep:
    """One station on the way from an output to the checkpoint that made it.

    `kind` is output, example, source, licence, dataset_version, run or checkpoint; neighbours of one kind are shown
    together. `identifier` is shown in full and may be long; `href` becomes a link only when it is http or https.
    """

    kind: str
    identifier: str
    label: str
    href: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class OutputSection:
    """What the audit says about one output. `true_label` is None where it is not known.

    `right` is None too where the adapter cannot say whether the prediction is the label.
    """

    output: Output
    result: OutputResult
    preview: Preview | None
    true_label: str | None
    proponents: tuple[ExampleCard, ...]
    opponents: tuple[ExampleCard, ...]
    shares: tuple[Share, ...]
    findings: tuple[Finding, ...]
    lineage: tuple[LineageStep, ...]
    groups: tuple[GroupContribution, ...] = ()
    right: bool | None = None
    wording: Wording = field(default_factory=Wording)

    @property
    def judged(self) -> bool:
        """True when the true label is known, and it can be said whether the model was right."""
        return self.true_label is not None and self.right is not None

    @property
    def wrong(self) -> bool:
        """True when the model is known to have said something else than the true label."""
        return self.judged and not self.right


@dataclass(frozen=True)
class Overall:
    """The audit's outputs taken together: means of the per-output shares, and the examples that matter most.

    `groups` is empty, here and for each output, where an older gradtrail recorded the audit.
    """

    shares: tuple[Share, ...]
    proponents: tuple[ExampleCard, ...]
    opponents: tuple[ExampleCard, ...]
    groups: tuple[GroupContribution, ...] = ()


@dataclass(frozen=True)
class Trust:
    """How far the scores can be believed, what they mean and what they do not cover.

    `fidelity` is None until it has been measured on this checkpoint; where that was tried and failed,
    `fidelity_not_measured` says why, and what would do. `damping` is text, for example "0.1 × the mean
    curvature of each layer". `left_out` and `fidelity_notes` hold whole sentences; `quarantined_outputs` gives the
    reason by output id; `not_reproduced` holds output ids. `approximate` is True only when an approximate search chose
    the examples. `intervals_together` is False where an older gradtrail measured intervals of each value on its own.
    """

    fidelity: Fidelity | None
    coverage: Coverage
    method: str
    method_description: str
    method_source: str
    curvature_kind: str | None
    damping: str
    weighting: Weighting
    meaning_of_scores: str
    left_out: tuple[str, ...] = ()
    quarantined_outputs: Mapping[str, str] = field(default_factory=dict)
    not_reproduced: tuple[str, ...] = ()
    fidelity_notes: tuple[str, ...] = ()
    fidelity_not_measured: str = ""
    approximate: bool = False
    intervals_together: bool = True


@dataclass(frozen=True)
class SignedRoot:
    """An Ed25519 signature of `statement`; key and signature are hexadecimal, the fingerprint is sha256 of the key."""

    public_key_sha256: str
    public_key: str
    statement: str
    signature: str


@dataclass(frozen=True)
class AuditReport:
    """One audit, complete. `preview_mode` is applied when the report is rendered, so previews may arrive as they are.

    `findings` holds all of them, those of single outputs too. `attribute_counts` is the number of training examples by
    attribute and value. `model_links` maps a label to a web address: model version, run, audit run, experiment.
    `audit_root` is the Merkle root over the rows of the ledger's event of this audit, `ledger_head` that event's hash.
    `measured_with` holds the versions of the libraries that measured the index, `checks` what was found before (see
    `gradtrail.nouns.Index`); None where an older gradtrail measured it.
    """

    audit: Audit
    created_at: datetime
    title: str
    model_version: ModelVersion
    model_links: Mapping[str, str]
    run: Run
    checkpoint: Checkpoint
    dataset: DatasetVersion
    attribute_counts: Mapping[str, Mapping[str, int]]
    trust: Trust
    findings: tuple[Finding, ...]
    overall: Overall
    outputs: tuple[OutputSection, ...]
    ledger_head: str
    preview_mode: PreviewMode
    gradtrail_version: str
    audit_root: str = ""
    signature: SignedRoot | None = None
    measured_with: Mapping[str, str] | None = None
    checks: Mapping[str, float] | None = None

    def cards(self) -> Iterator[ExampleCard]:
        """Every example card of the report, overall first, then output by output."""
        yield from self.overall.proponents
        yield from self.overall.opponents
        for section in self.outputs:
            yield from section.proponents
            yield from section.opponents
