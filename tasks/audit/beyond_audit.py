"""What some rules of a policy ask for beyond the audit itself: likeness, earlier audits, self-influence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest

from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.lineage.read.answers import RecordedExample
from gradtrail.nouns import Attribution, Example
from gradtrail.reports.policies.facts import EarlierAudit, Likeness
from gradtrail.reports.policies.file import Policy
from gradtrail.storage.gradients.rows import Column
from gradtrail.tasks.audit.likeness import measured_likeness
from gradtrail.tasks.core.datasets import ExampleFinder
from gradtrail.tasks.core.models import PinnedModel
from gradtrail.tasks.index.opened import OpenIndex

_MOST_SELF_INFLUENCES = 50


@dataclass(frozen=True)
class Asked:
    """What the rules of a policy ask for that costs something to know.

    Attributes:
        likeness: whether outputs are compared with their proponents.
        least_pair: the smallest cosine at which two proponents count as near-copies; 0 asks for none.
        earlier_audits: how many earlier audits are looked at.
        self_influence: whether the self-influence of all examples is.
    """

    likeness: bool = False
    least_pair: float = 0.0
    earlier_audits: int = 0
    self_influence: bool = False


@dataclass(frozen=True)
class BeyondAudit:
    """The answers to what was `Asked`; empty where nothing was."""

    likeness: Mapping[str, Likeness] = field(default_factory=dict)
    earlier: tuple[EarlierAudit, ...] = ()
    self_influences: tuple[tuple[str, float], ...] = ()
    output_sources: Mapping[str, str] = field(default_factory=dict)


def asked_by(policy: Policy) -> Asked:
    """What the rules of a policy ask for."""
    near = [rule.options["near_copies"] for rule in policy.rules if rule.options.get("near_copies")]
    return Asked(
        likeness=bool(near) or any(rule.kind == "copies_of_output" for rule in policy.rules),
        least_pair=min(near, default=0.0),
        earlier_audits=max((rule.options["audits"] for rule in policy.rules if rule.kind == "share_drift"), default=0),
        self_influence=any(rule.options.get("measure") == "self_influence" for rule in policy.rules),
    )


def largest_self_influences(opened: OpenIndex) -> tuple[tuple[str, float], ...]:
    """The largest self-influences ‖φ(z)‖² at the serving checkpoint, as multiples of the mean over all examples.

    An example that the model fits against everything else it learnt has a large gradient still (arXiv 2002.08484,
    section 4.1). The norms are stored, so that this reads one column and no gradient.
    """
    total, examples = 0.0, 0
    largest: list[tuple[float, str]] = []
    columns: tuple[Column, ...] = ("squared_norms",)
    for batch in opened.table.stream(version=opened.index.table_version, columns=columns):
        values = batch.squared_norms.sum(axis=1).astype(float).tolist()
        total, examples = total + sum(values), examples + len(values)
        largest = nlargest(_MOST_SELF_INFLUENCES, [*largest, *zip(values, batch.example_ids, strict=True)])
    mean = total / examples if examples else 0.0
    return tuple((example_id, value / mean) for value, example_id in largest) if mean else ()


def likeness_asked_for(
    asked: Asked,
    opened: OpenIndex,
    queries: GradientBatch,
    attributions: Sequence[Attribution],
    outputs_of: Callable[[Sequence[str]], Sequence[Example]],
    pinned: PinnedModel,
    recorded: Mapping[str, RecordedExample],
) -> dict[str, Likeness]:
    """The likeness of outputs and proponents, if a rule asks for it; see `measured_likeness`."""
    if not asked.likeness:
        return {}
    places = {example_id: (example.position, example.content_sha256) for example_id, example in recorded.items()}
    find = ExampleFinder(pinned.training_data, places)

    def inputs_of(example: Example) -> object:
        return pinned.adapter.collate([example]).inputs

    return measured_likeness(opened, queries, attributions, outputs_of, find, inputs_of, asked.least_pair)
