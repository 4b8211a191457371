"""How well candidates predict the truths: chosen on the selection queries, reported on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fidelity.candidates import Candidate
from fidelity.truths import Truths
from gradtrail.attribution.features.weights import group_weights
from gradtrail.attribution.fidelity.noise_ceilings import split_half_ceilings
from gradtrail.attribution.numerics.correlation import spearmans
from gradtrail.nouns import Weighting

Matrix = NDArray[np.float64]
ENOUGH_ERRORS = 2.0
LEAST_GAIN = 0.10


@dataclass(frozen=True)
class Question:
    """One truth that is to be predicted: measured (sets, queries) for `sets` as rows of 0 and 1 over the examples.

    `steps` are those of further training; for `lds` those of training from scratch.
    """

    metric: str
    steps: int
    members: Matrix
    measured: Matrix
    by_seed: Matrix

    def ceiling(self, queries: Sequence[int]) -> float:
        """What a perfect prediction could reach, as Spearman."""
        return split_half_ceilings(self.by_seed[:, :, list(queries)]).spearman

    def ranks(self, predicted: Matrix, queries: Sequence[int]) -> Matrix:
        """Spearman of each query over the sets: (queries,)."""
        chosen = list(queries)
        return spearmans(predicted[:, chosen], self.measured[:, chosen])


def questions(truths: Truths) -> list[Question]:
    """Fidelity to subsets and to single examples by amount of further training, then LDS."""
    found = []
    for effects in (truths.subset, truths.loo):
        members = _members(effects.removed, truths.example_ids)
        for place, steps in enumerate(effects.steps):
            by_seed = effects.by_seed[:, place]
            found.append(Question(f"fidelity_{effects.kind}", steps, members, by_seed.mean(0), by_seed))
    retrained = truths.retrained
    # Losses rise as helpful examples are left out, like effects: the sign of both sides is that of leaving out.
    losses = -retrained.outputs(retrained.steps[-1])
    members = _members(retrained.removed, truths.example_ids)
    found.append(Question("lds", retrained.steps[-1], members, losses.mean(0), losses))
    return found


@dataclass(frozen=True)
class Prediction:
    """A candidate under a weighting, with what each group predicts for one question: (sets, queries, groups)."""

    candidate: Candidate
    weighting_name: str
    weighting: Weighting
    by_group: Matrix

    @property
    def total(self) -> Matrix:
        """(sets, queries)."""
        plan = self.candidate.plan
        if plan is None or not self.weighting.group_weights:
            return self.by_group.sum(2)
        weighted: Matrix = self.by_group @ group_weights(self.weighting, plan).numpy()
        return weighted


def predicted(candidate: Candidate, question: Question) -> Matrix:
    """Σ over z in S of C[q, z, g]: (sets, queries, groups)."""
    members = torch.from_numpy(question.members)
    found: Matrix = torch.einsum("sz,qzg->sqg", members, candidate.contributions.double()).numpy()
    return found


@dataclass(frozen=True)
class Comparison:
    """The best of ours against the best peer over the same queries.

    `closed` is the part of the gap between the peer and the ceiling; the difference is paired, with its standard error.
    """

    difference: float
    standard_error: float
    closed: float

    @property
    def verdict(self) -> str:
        """better: at least a tenth of the gap, beyond two standard errors; ahead, tie or behind otherwise."""
        if abs(self.difference) <= ENOUGH_ERRORS * self.standard_error:
            return "tie"
        if self.difference < 0:
            return "behind"
        return "better" if self.closed >= LEAST_GAIN else "ahead"


def compare(ours: Matrix, theirs: Matrix, ceiling: float) -> Comparison:
    """Both (queries,), in the same order."""
    differences = ours - theirs
    difference = float(differences.mean())
    gap = ceiling - float(theirs.mean())
    return Comparison(difference, standard_error(differences), difference / gap if gap > 0 else 0.0)


def standard_error(values: Matrix) -> float:
    """Of the mean over queries."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _members(removed: Sequence[frozenset[str]], example_ids: Sequence[str]) -> Matrix:
    return np.array([[float(name in without) for name in example_ids] for without in removed])
