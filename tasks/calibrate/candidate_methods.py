"""Candidates of a calibration: methods with their dampings, and the effects that each predicts, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.features.weights import group_weights
from gradtrail.attribution.fidelity.effects import Effects
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.gradients.memory import FEW_EXAMPLES
from gradtrail.attribution.methods.needs import SEGMENT, SOLUTIONS
from gradtrail.attribution.methods.registry import METHODS, find_method, settled
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.scoring.contribution_blocks import group_effects, removed_sums
from gradtrail.attribution.scoring.joint import Member
from gradtrail.nouns import Example, Weighting
from gradtrail.tasks.audit.preparing import method_parameters, prepare_audit, training_segments
from gradtrail.tasks.calibrate.plans import CalibrateOptions
from gradtrail.tasks.calibrate.queries import QuerySet
from gradtrail.tasks.core.models import PinnedModel
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.opened import OpenIndex, method_indexes, open_index

BLOCK_DAMPINGS = (0.1, 1.0, 10.0, 100.0)
JOINT_DAMPINGS = (1.0, 10.0, 100.0, 1000.0)
"""Relative to the mean eigenvalue, which many directions without any curvature make small where groups are joined."""
TRAINING_SHARES = (0.01, 0.1, 1.0, 10.0)
"""Of the learning rates × steps that were registered: adaptive optimisers go further, or less far, than they say."""
LARGEST_JOINT_DIMENSION = 4096


@dataclass(frozen=True)
class Candidate:
    """A method with its parameters, and the indexes that it scores."""

    spec: MethodSpec
    index_ids: tuple[str, ...]


@dataclass(frozen=True)
class Prediction:
    """What a candidate predicts.

    `by_group` is (halves, queries, groups) float64 under the uniform weighting, `singles_by_group` the same for single
    examples, where those were left out. `members` are the queries prepared for each index, with its rows; `examples` is
    the number of those.
    """

    candidate: Candidate
    parameters: dict[str, Any]
    plan: FeaturePlan
    examples: int
    members: tuple[Member, ...]
    by_group: NDArray[Any]
    singles_by_group: NDArray[Any] | None

    def effects(self, weighting: Weighting) -> NDArray[Any]:
        """Under a weighting: (halves, queries)."""
        found: NDArray[Any] = self.by_group @ group_weights(weighting, self.plan).numpy()
        return found

    def single_effects(self, weighting: Weighting) -> NDArray[Any] | None:
        """The same for single examples; None where none were left out."""
        if self.singles_by_group is None:
            return None
        found: NDArray[Any] = self.singles_by_group @ group_weights(weighting, self.plan).numpy()
        return found


class Predictor:
    """Predicts effects; what candidates share is measured once: features of the queries, sums of left-out rows."""

    def __init__(
        self,
        workspace: Workspace,
        pinned: PinnedModel,
        query_set: QuerySet,
        halves: Effects,
        singles: Effects | None,
        options: CalibrateOptions,
    ) -> None:
        self._workspace = workspace
        self._pinned = pinned
        self._queries = query_set
        self._options = options
        self._removed = [*halves.removed, *(singles.removed if singles else ())]
        self._halves = len(halves.removed)
        self._opened: dict[str, OpenIndex] = {}
        self._features: dict[str, GradientBatch] = {}
        self._sums: dict[tuple[str, str], torch.Tensor] = {}

    def predict(self, candidate: Candidate) -> Prediction:
        """Parameters of the candidate, and the effects that it predicts.

        Raises:
            DataError: when a left-out example is missing from one of its indexes.
        """
        opened = [self._open(index_id) for index_id in candidate.index_ids]
        spec = settled(candidate.spec, self._pinned.adapter)
        parameters = method_parameters(self._pinned, spec, [each.checkpoint for each in opened])
        rows = [self._measured(each) for each in opened]
        prepared = prepare_audit(
            self._workspace,
            self._pinned,
            opened,
            rows,
            spec,
            Weighting(),
            self._examples,
            target=self._options.target,
            device=self._options.device,
        )
        by_index = [
            group_effects(member.queries, self._removed_sums(each, member), each.plan)
            for each, member in zip(opened, prepared.members, strict=True)
        ]
        found: NDArray[np.float64] = np.sum(by_index, axis=0)
        return Prediction(
            candidate,
            parameters,
            opened[-1].plan,
            opened[-1].index.coverage.indexed_examples,
            prepared.members,
            found[: self._halves],
            found[self._halves :] if len(found) > self._halves else None,
        )

    def _open(self, index_id: str) -> OpenIndex:
        if index_id not in self._opened:
            self._opened[index_id] = open_index(self._workspace, self._pinned, index_id)
        return self._opened[index_id]

    def _measured(self, opened: OpenIndex) -> GradientBatch:
        index_id = opened.index.index_id
        if index_id not in self._features:
            self._features[index_id] = query_features(self._pinned, opened, self._queries.examples, self._options)
        return self._features[index_id]

    def _removed_sums(self, opened: OpenIndex, member: Member) -> torch.Tensor:
        key = (opened.index.index_id, member.queries.train_scale)
        if key not in self._sums:
            self._sums[key] = removed_sums(member.rows, self._removed, opened.plan, member.queries)
        return self._sums[key]

    def _examples(self, query_ids: Sequence[str]) -> list[Example]:
        by_id = {example.example_id: example for example in self._queries.examples}
        return [by_id[query_id] for query_id in query_ids]


def candidates(workspace: Workspace, pinned: PinnedModel, index_id: str, options: CalibrateOptions) -> list[Candidate]:
    """The methods asked for, or those that the index serves without another one, each at several dampings.

    Where every checkpoint is asked for, a method that can add up over them comes a second time, so.

    Raises:
        NotFoundError: when an index that a method scores was not built.
    """
    names = options.methods or _free_methods(open_index(workspace, pinned, index_id), pinned, options)
    version = pinned.model_version.model_version_id
    found = []
    for name in names:
        joined = options.every_checkpoint and find_method(name).combination == "sum"
        families = {
            tuple(method_indexes(workspace, version, name, every, preferred=index_id))
            for every in (False, *([True] if joined else []))
        }
        tuned = _tuned(MethodSpec(name), pinned)
        found += [Candidate(each, index_ids) for index_ids in sorted(families, key=len) for each in tuned]
    return found


def query_features(
    pinned: PinnedModel, opened: OpenIndex, queries: Sequence[Example], options: CalibrateOptions
) -> GradientBatch:
    """Unweighted features of queries as the index's checkpoint measures them."""
    model = pinned.load(opened.checkpoint).to(options.device)
    pieces = [
        compute_features(
            pinned.adapter,
            model,
            queries[start : start + FEW_EXAMPLES],
            opened.plan,
            target=options.target,
            device=options.device,
        )
        for start in range(0, len(queries), FEW_EXAMPLES)
    ]
    return GradientBatch.joined(pieces)


def _tuned(plain: MethodSpec, pinned: PinnedModel) -> list[MethodSpec]:
    """A method at several dampings, or over several lengths of training."""
    needs = find_method(plain.method).needs
    if SEGMENT in needs:
        total = sum(training_segments(pinned).values())
        return [replace(plain, horizon=share * total) for share in TRAINING_SHARES]
    if SOLUTIONS in needs or not any(need.kind for need in needs):
        return [plain]
    dampings = JOINT_DAMPINGS if any(need.joins_groups for need in needs) else BLOCK_DAMPINGS
    return [replace(plain, damping=Damping(relative)) for relative in dampings]


def _unrollable(pinned: PinnedModel) -> bool:
    """Whether it is known how long the training to each checkpoint was, and none is the first weights."""
    steps = [0, *(each.step for each in pinned.checkpoints)]
    return all(each.learning_rate for each in pinned.checkpoints) and all(a < b for a, b in pairwise(steps))


def _free_methods(opened: OpenIndex, pinned: PinnedModel, options: CalibrateOptions) -> tuple[str, ...]:
    """Methods that the indexes asked for serve without another one, and without solving for single outputs."""
    names = ["grad_dot", "grad_cos", "influence"]
    if opened.plan.dimension <= LARGEST_JOINT_DIMENSION:
        names += ["influence_global", "horizon"]
        if options.every_checkpoint and _unrollable(pinned) and opened.plan.projection_kind != "eigen":
            names.append("unrolled")
    if opened.plan.projection_kind == "eigen":
        names.append("ekfac")
    return tuple(name for name in names if name in METHODS)
