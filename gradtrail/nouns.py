"""The nouns of gradtrail: one frozen type each, used by every room. Standard library only.

Ids are lower-case hexadecimal sha256 digests unless a field says otherwise. Times are timezone-aware UTC.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from gradtrail.digests import content_sha256, sha256_json

Side = Literal["proponent", "opponent"]
Target = Literal["emitted", "label"]
Severity = Literal["high", "medium", "low", "info"]
PreviewMode = Literal["full", "redacted", "none"]
Fate = Literal["sampled_out", "refused", "waiting", "pending", "audited"]

SEVERITIES: tuple[Severity, ...] = ("high", "medium", "low", "info")
FATES: Mapping[Fate, str] = MappingProxyType(
    {
        "sampled_out": "its source's sampling did not choose it",
        "refused": "it could not be read or measured; the quarantine holds the cause",
        "waiting": "it was taken and is not recorded yet: its model version is not ingested, the run was full, or its "
        "time lies in the future",
        "pending": "it is recorded, and no audit covers it yet",
        "audited": "an audit covers it",
    }
)
"""What becomes of an output, and what that means."""
NO_RUN = "none:"
"""Begins the id that stands in the ledger for a run that there is not."""
FROZEN = " (frozen)"
"""Ends the name of a parameter that training does not move, in `Coverage.uncovered`."""


@dataclass(frozen=True)
class Example:
    """One training instance, or an observed output turned into something with a loss.

    `example_id` is the user's own stable id. `inputs` and `target` are whatever the adapter's `collate` understands.
    `attributes` are text by name: source, licence, label, author…
    """

    example_id: str
    inputs: Any
    target: Any
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def content_sha256(self) -> str:
        """Digest of inputs and target; see `gradtrail.digests.content_sha256`."""
        return content_sha256(self.inputs, self.target)


@dataclass(frozen=True)
class ManifestRow:
    """One line of a dataset version's manifest: an example without its content."""

    example_id: str
    content_sha256: str
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class DatasetVersion:
    """An ordered manifest of examples; its id is the sha256 of the manifest file."""

    dataset_version_id: str
    name: str
    example_count: int
    manifest_uri: str


@dataclass(frozen=True)
class Wording:
    """How a report speaks of what was measured of an output: what it is, and what training on a side does to it."""

    measured: str = "Loss"
    proponents: str = "training on them lowers the loss of this output"
    opponents: str = "training on them raises it"


@dataclass(frozen=True)
class Run:
    """The MLflow run that trained a model. `run_id` is MLflow's."""

    run_id: str
    experiment_id: str
    name: str
    started_at: datetime | None
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_in_mlflow(self) -> bool:
        """Whether there is such a run: a model version may have been registered without one."""
        return is_in_mlflow(self.run_id)


def is_in_mlflow(run_id: str) -> bool:
    """Whether an id of the ledger is that of a run in MLflow, and not of a stand-in."""
    return not run_id.startswith(NO_RUN)


def no_run(model_version_id: str) -> Run:
    """What stands for the training run of a model version that was registered without one; of each version its own."""
    return Run(f"{NO_RUN}{model_version_id}", "", "none: the version was registered without a run", None)


@dataclass(frozen=True)
class Checkpoint:
    """Weights at one step; `checkpoint_id` is the sha256 of the registered file.

    Of weights in shards it is the digest of their names and digests, of a peft adapter that comes without its base the
    digest of file and base.

    `weights_uri` is the safetensors file gradtrail reads. It is the registered file itself, or its safe copy when that
    file had another `format`; `weights_sha256` is its digest. `learning_rate` is None where nobody recorded it.
    """

    checkpoint_id: str
    step: int
    learning_rate: float | None
    format: str
    source_uri: str
    weights_uri: str
    weights_sha256: str
    byte_size: int


@dataclass(frozen=True)
class ModelVersion:
    """A registered MLflow model version, with the adapter whose source digest is pinned.

    `checkpoint_ids` are in order of steps; the last is the one that serves. `measured_by` holds the digests of what
    decides the adapter's numbers, by what each is of; None where an older gradtrail took the version in.
    """

    name: str
    version: int
    run_id: str
    dataset_version_id: str
    adapter: str
    adapter_sha256: str
    checkpoint_ids: tuple[str, ...]
    measured_by: Mapping[str, str] | None = None

    @property
    def model_version_id(self) -> str:
        """Name and number, for example `digits/3`."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class Coverage:
    """What share of the model and of the data an index speaks for, and what it leaves out.

    Parameters are those that training moves. `uncovered` names the ones left out, and the frozen ones, marked as such.
    """

    covered_parameters: int
    total_parameters: int
    uncovered: tuple[str, ...]
    indexed_examples: int
    total_examples: int
    quarantined: Mapping[str, str] = field(default_factory=dict)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Parameters that training moves and the scores do not speak for."""
        return tuple(name for name in self.uncovered if not name.endswith(FROZEN))

    @property
    def frozen(self) -> tuple[str, ...]:
        """Parameters that training does not move."""
        return tuple(name.removesuffix(FROZEN) for name in self.uncovered if name.endswith(FROZEN))

    @property
    def parameter_share(self) -> float:
        """Covered parameters over all that training moves, 0 to 1."""
        return self.covered_parameters / self.total_parameters if self.total_parameters else 0.0

    @property
    def example_share(self) -> float:
        """Indexed examples over all examples of the dataset version, 0 to 1."""
        return self.indexed_examples / self.total_examples if self.total_examples else 0.0


@dataclass(frozen=True)
class Index:
    """The gradient table for one checkpoint, dataset version, feature configuration and adapter.

    `rows_sha256` is the digest of all its rows in no order, as sealed at `table_version`. `adapter` is the one that
    measured it, `adapter_sha256` the digest of its module, `measured_by` those of what decides its numbers, and
    `measured_with` the versions of libraries. `checks` are relative differences that checks before the measuring found:
    `losses` alone against in a batch, `gradients` in a batch against autograd, `rounding` of half precision against
    float32. All five are None where an older gradtrail measured it.
    """

    checkpoint_id: str
    dataset_version_id: str
    feature_config: Mapping[str, Any]
    coverage: Coverage
    table_uri: str
    table_version: int
    rows_sha256: str
    adapter: str | None = None
    adapter_sha256: str | None = None
    measured_by: Mapping[str, str] | None = None
    measured_with: Mapping[str, str] | None = None
    checks: Mapping[str, float] | None = None

    @property
    def index_id(self) -> str:
        """Digest of checkpoint, dataset version, feature configuration and what decides the adapter's numbers."""
        return index_id(self.checkpoint_id, self.dataset_version_id, self.feature_config, self.measured_by)


def index_id(
    checkpoint_id: str,
    dataset_version_id: str,
    feature_config: Mapping[str, Any],
    measured_by: Mapping[str, str] | None,
) -> str:
    """The id an index has, or will have once it is built; without `measured_by` the one that it had before 0.3."""
    said = {"checkpoint": checkpoint_id, "dataset_version": dataset_version_id, "features": dict(feature_config)}
    if measured_by is not None:
        said["adapter"] = dict(measured_by)
    return sha256_json(said)


@dataclass(frozen=True)
class Weighting:
    """Importance of each parameter group, with the objective it was fitted for and the evidence.

    An empty `group_weights` is the uniform weighting: every group counts 1.
    """

    objective: str = "uniform"
    group_weights: Mapping[str, float] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weighting_id(self) -> str:
        """Digest of objective and weights."""
        return sha256_json({"objective": self.objective, "group_weights": dict(self.group_weights)})


def lies_above(value: float, error: float, ceiling: float, ceiling_error: float) -> bool:
    """Whether a figure exceeds its ceiling by more than two standard errors of their difference."""
    return value - ceiling > 2 * math.hypot(error, ceiling_error)


@dataclass(frozen=True)
class Fidelity:
    """What a method measured against further training on one checkpoint (arXiv 2412.03906).

    `parameters` are those of the method (curvature, damping); `evidence` says how it was measured: indexes, steps,
    optimiser, left-out sets, seeds, queries.
    """

    checkpoint_id: str
    method: str
    weighting_id: str
    metric: str
    value: float
    standard_error: float
    ceiling: float
    queries: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fidelity_id(self) -> str:
        """Digest of all it says; what it does not say does not count, so that a field added later changes no id."""
        return sha256_json({name: value for name, value in asdict(self).items() if value is not None})

    @property
    def not_measured_because(self) -> str:
        """Why the figure says nothing, as a sentence's end; empty where its noise ceiling backs it.

        The ceiling must stand off zero, and below the figure by no more than the errors of both explain.
        """
        if not self.evidence.get("ceiling_stands", self.ceiling > 0):
            return "runs of further training that differ in their seed alone do not agree on what leaving data out does"
        if lies_above(self.value, self.standard_error, self.ceiling, self.evidence.get("ceiling_error", 0.0)):
            return (
                f"the figure {self.value:.2f} ± {self.standard_error:.2f} lies above {self.ceiling:.2f}, the most that "
                "the noise of further training leaves within reach"
            )
        return ""


@dataclass(frozen=True)
class Output:
    """One thing the model produced. `output_id` is `source:record_id`; see `gradtrail.storage.sources.outputs`."""

    output_id: str
    source: str
    record_id: str
    produced_at: datetime
    model_version_id: str
    payload_sha256: str
    target: Target = "emitted"


@dataclass(frozen=True)
class Watermark:
    """How far a source of outputs was read, and what became of its records, counted since its beginning.

    `reached` is the newest time of a record that was read, never later than the reading itself. `seen` counts
    different records: those `taken` to be audited, `sampled_out` and `refused`. Of the taken ones, `waiting` are not
    recorded yet.
    """

    source: str
    kind: str
    reached: datetime | None
    seen: int = 0
    taken: int = 0
    sampled_out: int = 0
    refused: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class Audit:
    """Outputs × indexes × method × weighting × policy, pinned. Time is an attribute, never part of the key."""

    outputs: tuple[tuple[str, Target], ...]
    model_version_id: str
    index_ids: tuple[str, ...]
    method: str
    parameters: Mapping[str, Any]
    weighting_id: str
    policy_sha256: str

    @cached_property
    def audit_id(self) -> str:
        """Digest of everything that determines the answer; made once, for it reads every output."""
        pinned = asdict(self)
        pinned["outputs"] = sorted([list(output) for output in self.outputs])
        pinned["index_ids"] = list(self.index_ids)
        pinned["parameters"] = dict(self.parameters)
        return sha256_json(pinned)


@dataclass(frozen=True)
class Attribution:
    """One scored pair: a positive score means that training on the example lowers the output's loss."""

    output_id: str
    example_id: str
    side: Side
    rank: int
    score: float


@dataclass(frozen=True)
class Share:
    """How much of the influence on an output came from one attribute value (METHODS: share).

    `output_id` is None for the mean over the audit's outputs; only then is the permutation interval measured.
    """

    output_id: str | None
    side: Side
    attribute: str
    value: str
    share: float
    training_share: float
    interval_low: float | None = None
    interval_high: float | None = None

    @property
    def ratio(self) -> float:
        """Share of influence over share of the training set; above 1 means more than its size explains."""
        return self.share / self.training_share if self.training_share else 0.0


@dataclass(frozen=True)
class GroupContribution:
    """How much of the kept attributions on one side came from one parameter group.

    Over all groups the shares of an output and side add up to 1; a group that pulls the other way has a negative one.
    `output_id` is None for the mean over the audit's outputs.
    """

    output_id: str | None
    side: Side
    group: str
    share: float


@dataclass(frozen=True)
class OutputResult:
    """What an audit found about one output as a whole.

    `prediction` is what the model emitted, as text; `loss` that of the measured target; `reproduced` whether the pinned
    checkpoint emits it again, None where that is no question. `proponent_mass` and `opponent_mass` are the sums of
    positive and of negative scores.
    """

    output_id: str
    prediction: str
    loss: float
    reproduced: bool | None
    proponent_mass: float
    opponent_mass: float


@dataclass(frozen=True)
class ExampleInfluence:
    """Mean share of one example over all outputs of an audit, per side."""

    example_id: str
    side: Side
    rank: int
    share: float


@dataclass(frozen=True)
class Finding:
    """A policy that fired. `output_id` is None when it concerns the audit as a whole."""

    rule: str
    severity: Severity
    message: str
    output_id: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """One entry of the ledger's history; `event_hash` covers the entry and `previous_hash`."""

    sequence: int
    recorded_at: datetime
    kind: str
    subject: str
    payload: Mapping[str, Any]
    previous_hash: str
    event_hash: str


@dataclass(frozen=True)
class Preview:
    """What a report may show of an example: `text`, a PNG `image`, or the fields of a table `row`."""

    kind: Literal["text", "image", "row"]
    text: str = ""
    png: bytes = b""
    row: Mapping[str, str] = field(default_factory=dict)
