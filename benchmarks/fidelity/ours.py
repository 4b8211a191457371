"""Our scores on gradtrail's own path: features, preparation, contributions by group; in memory, at every damping."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fidelity.candidates import ENGINE, FURTHER, MORE, Candidate, repeated, sum_of
from fidelity.truths import Truths
from gradtrail.attribution.curvature.blocks import BlockCurvature, DiagonalCurvature
from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.inverse_products import Solver, inverse_curvature_products
from gradtrail.attribution.curvature.kronecker import fit_eigen_basis
from gradtrail.attribution.curvature.spectrum import Spectrum, margin_vectors
from gradtrail.attribution.curvature.vectors import CurvaturePieces, model_vectors, observed_vectors
from gradtrail.attribution.features.plan import FeaturePlan, FeatureSettings, plan_features
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.gradients.capture import iterate_features
from gradtrail.attribution.methods.prepared import PreparedQueries
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.methods.unrolling import Segment, unrolled_queries
from gradtrail.attribution.numerics.linear_solvers import SolverOptions
from gradtrail.attribution.scoring.contribution_blocks import contributions
from gradtrail.errors import UsageError

LINEAR_ONLY = ("*.wte", "*.wpe", "*.ln_1", "*.ln_2", "*.ln_f")
"""Left out of the language model, for most peers cover its linear layers alone."""
EXPONENTS = (-5.0, -4.5, -4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5)
"""Dampings tried, as powers of ten of the curvature's largest eigenvalue."""
FEW_EXPONENTS = (-2.0, -1.0, 0.0)
"""For cg and lissa, which pass over the training data for every one."""
FEWER_EXPONENTS: dict[tuple[str, Solver], tuple[float, ...]] = {
    ("digits", "lissa"): (-1.0, 0.0),
    ("language", "cg"): (-1.0, 0.0),
    ("language", "lissa"): (0.0,),
}
"""Where the others take too long."""
_EVERY_FOURTH = slice(None, None, 4)
"""Of the examples: the curvature that cg and lissa invert on the language model, where one product takes seconds."""
_DRAWS = 2
_TRAININGS = 5
_ORDERS = 3
_SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Of τ = learning rate × steps, for unrolling: with half of the examples left out half of the curvature is gone."""
_TRAINING_SHARES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""The same of the training itself, whose optimiser goes further than plain descent where gradients are small."""
_BATCH = 64
_PROJECTED = 1024
"""Numbers a group keeps where blocks are inverted and a layer is larger."""
_LARGEST_BLOCK = 4096


@dataclass(frozen=True)
class MeasuredTask:
    """Features of training examples and queries under one plan and checkpoint."""

    plan: FeaturePlan
    rows: tuple[GradientBatch, ...]
    queries: GradientBatch


class OurScores:
    """Every method that applies to a task, at every damping."""

    def __init__(self, truths: Truths) -> None:
        self.truths = truths
        self.task = truths.task
        self.adapter = truths.task.adapter
        self.training = truths.task.data.training
        self.queries = truths.task.data.queries

    @cached_property
    def exact(self) -> MeasuredTask:
        """Whole gradients of the judged checkpoint."""
        return self._measure(self.truths.model, self._plan(10**7))

    @cached_property
    def blocks(self) -> MeasuredTask:
        """What blocks are inverted in: whole gradients, or projected ones where a layer is large."""
        if max(group.dimension for group in self.exact.plan.groups) <= _LARGEST_BLOCK:
            return self.exact
        return self._measure(self.truths.model, self._plan(_PROJECTED))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Curvatures tried: exact where outputs are few."""
        return ("fisher", "empirical") if self.task.name == "language" else ("ggn", "empirical")

    @cached_property
    def spectra(self) -> dict[str, Spectrum]:
        """Curvature over all groups, by kind."""
        return {kind: Spectrum.fit(self._vectors(kind, self.exact)) for kind in self.kinds}

    @cached_property
    def largest(self) -> float:
        """The largest eigenvalue of the first kind of curvature: the unit of dampings."""
        return float(self.spectra[self.kinds[0]].eigenvalues[-1])

    @property
    def exponents(self) -> Sequence[float]:
        """Those of the dampings; a few where the task is a toy."""
        return EXPONENTS[::6] if self.task.toy else EXPONENTS

    def dampings(self, exponents: Sequence[float] | None = None) -> list[float]:
        """Absolute ones, ascending."""
        return [self.largest * 10**exponent for exponent in (self.exponents if exponents is None else exponents)]

    def candidates(self) -> Iterator[Candidate]:
        """One after the other."""
        yield self._candidate(self.exact, "grad_dot")
        yield self._candidate(self.exact, "grad_cos")
        yield self._traced()
        yield from self._over_checkpoints()
        yield from self._unrolled()
        yield from self._unrolled_further()
        yield from self._ensemble()
        for kind in self.kinds:
            for damping in self.dampings():
                yield self._candidate(self.exact, "influence_global", damping, kind, spectrum=self.spectra[kind])
                yield self._candidate(
                    self.exact, "horizon", damping, kind, spectrum=self.spectra[kind], horizon=1 / damping
                )
            curvature = BlockCurvature.fit(self._vectors(kind, self.blocks))
            for damping in self.dampings():
                yield self._candidate(self.blocks, "influence", damping, kind, curvature=curvature)
        yield from self._diagonal()
        for damping in self.dampings():
            yield self._candidate(self.exact, "datainf", damping, training_rows=lambda: self.exact.rows)
        yield from self._trak()
        yield from self._solved()

    def _traced(self) -> Candidate:
        """tracin_cp: every checkpoint with its learning rate."""
        found = []
        for checkpoint in self.truths.checkpoints:
            measured = self._measure(checkpoint.model, self.exact.plan)
            found.append(self._candidate(measured, "tracin_cp", learning_rate=checkpoint.learning_rate))
        return dataclasses.replace(
            found[0],
            contributions=sum_of(one.contributions for one in found),
            parameters={"checkpoints": len(found)},
        )

    def _ensemble(self) -> Iterator[Candidate]:
        """influence_global as a sum over the judged network and others trained from scratch on the same examples."""
        kind, plan = self.moving_kind, self.exact.plan
        models = [self.truths.model, *(self.truths.trained_again(number) for number in range(1, _TRAININGS))]
        members = [self._measure(model, plan) for model in models]
        spectra = [Spectrum.fit(self._vectors(kind, self.exact, model)) for model in models]
        for damping in self.dampings():
            found = [
                self._candidate(member, "influence_global", damping, kind, spectrum=spectrum)
                for member, spectrum in zip(members, spectra, strict=True)
            ]
            yield dataclasses.replace(found[0], engine=MORE, contributions=sum_of(one.contributions for one in found))

    @property
    def moving_kind(self) -> str:
        """The curvature where many are decomposed: exact ones of ten outputs take minutes each."""
        return "fisher" if self.task.name in {"digits", "language"} else "ggn"

    def _over_checkpoints(self) -> Iterator[Candidate]:
        """influence_global at every stored checkpoint with its own curvature; the scores add up as those of tracin_cp.

        Groups are the layers of each checkpoint, so that weights may prefer some checkpoints.
        """
        kind, plan = self.moving_kind, self.exact.plan
        for damping in self.dampings():
            found = [
                self._candidate(member, "influence_global", damping, kind, spectrum=spectrum)
                for member, spectrum in self.at_checkpoints
            ]
            yield dataclasses.replace(
                found[0],
                method="influence_global, every checkpoint",
                contributions=torch.cat([one.contributions for one in found], dim=2),
                plan=repeated(plan, [f"step {checkpoint.step}" for checkpoint in self.truths.checkpoints]),
            )

    @cached_property
    def at_checkpoints(self) -> list[tuple[MeasuredTask, Spectrum]]:
        """Features and curvature at every stored checkpoint."""
        return [
            (
                self._measure(checkpoint.model, self.exact.plan),
                Spectrum.fit(self._vectors(self.moving_kind, self.exact, checkpoint.model)),
            )
            for checkpoint in self.truths.checkpoints
        ]

    def _unrolled(self) -> Iterator[Candidate]:
        """The training unrolled over its checkpoints, from the queries at its end; of several lengths in all."""
        plan, steps = self.exact.plan, [0, *(checkpoint.step for checkpoint in self.truths.checkpoints)]
        lengths = [
            checkpoint.learning_rate * (checkpoint.step - before)
            for checkpoint, before in zip(self.truths.checkpoints, steps, strict=False)
        ]
        for share in _TRAINING_SHARES[:: 3 if self.task.toy else 1]:
            segments = [
                Segment(spectrum, share * length)
                for (_, spectrum), length in zip(self.at_checkpoints, lengths, strict=True)
            ]
            prepared = unrolled_queries(self.at_checkpoints[-1][0].queries, segments, plan)
            values = [_contributed(one, each) for one, (each, _) in zip(prepared, self.at_checkpoints, strict=True)]
            parameters = {"curvature": self.moving_kind, "horizon": share * sum(lengths)}
            yield Candidate(ENGINE, "unrolled", sum_of(values), parameters, 1 / parameters["horizon"], plan)

    def _unrolled_further(self) -> Iterator[Candidate]:
        """Further training unrolled in two segments, for every amount, as a mean over orders that no truth has.

        Groups are the layers of each segment.
        """
        plan = self.exact.plan
        for steps in self.task.steps:
            found = [self._unrolled_once(steps, seed) for seed in range(1 if self.task.toy else _ORDERS)]
            for share in _SHARES[:: 3 if self.task.toy else 1]:
                horizon = share * self.task.rate * steps
                together: list[Tensor] = []
                for end, segments, measured in found:
                    parts = [Segment(spectrum, horizon / len(segments)) for spectrum in segments]
                    prepared = unrolled_queries(end.queries, parts, plan)
                    values = [_contributed(one, rows) for one, rows in zip(prepared, measured, strict=True)]
                    together.append(torch.cat(values, dim=2))
                parameters = {"curvature": self.moving_kind, "unrolled_steps": steps, "horizon": horizon}
                groups = repeated(plan, ["first half", "second half"])
                yield Candidate(ENGINE, FURTHER, sum_of(together), parameters, 1 / horizon, groups)

    def _unrolled_once(self, steps: int, seed: int) -> tuple[MeasuredTask, list[Spectrum], list[MeasuredTask]]:
        """The end of one further training, and curvature and features in the middle of each of its halves."""
        middles = [self.truths.further_trained(steps * quarter // 4, seed) for quarter in (1, 3)]
        spectra = [Spectrum.fit(self._vectors(self.moving_kind, self.exact, model)) for model in middles]
        measured = [self._measure(model, self.exact.plan) for model in middles]
        return self._measure(self.truths.further_trained(steps, seed), self.exact.plan), spectra, measured

    def _diagonal(self) -> Iterator[Candidate]:
        kind = self.kinds[0]
        basis = fit_eigen_basis(self.adapter, self.truths.model, self.training, self.exact.plan, kind=kind)
        measured = self._measure(self.truths.model, dataclasses.replace(self.exact.plan, basis=basis))
        diagonal = DiagonalCurvature.fit(self._vectors(kind, measured))
        for damping in self.dampings():
            yield self._candidate(measured, "ekfac", damping, kind, diagonal=diagonal)

    def _trak(self) -> Iterator[Candidate]:
        if self.task.name not in {"cancer", "digits"}:
            return  # a margin is that of one class
        kernel = Spectrum.fit(margin_vectors(lambda: self.exact.rows, self.exact.plan))
        for exponent in self.exponents:
            damping = float(kernel.eigenvalues[-1]) * 10**exponent
            yield self._candidate(self.exact, "trak", damping, kernel=kernel)

    def _solved(self) -> Iterator[Candidate]:
        sample = self.training[_EVERY_FOURTH] if self.task.name == "language" else self.training
        solvers: tuple[Solver, ...] = ("cg", "lissa")
        for solver in solvers:
            for damping in self.dampings(FEWER_EXPONENTS.get((self.task.name, solver), FEW_EXPONENTS)):
                try:
                    solutions = inverse_curvature_products(
                        solver,
                        self.adapter,
                        self.truths.model,
                        sample,
                        self.queries,
                        self.exact.plan,
                        damping=Damping(0.0, damping),
                        options=SolverOptions(tolerance=1e-2, most_products=200),
                        batch_size=32 if self.task.name == "language" else len(sample),
                    )
                except UsageError:
                    continue  # this solver does not get there with this damping: no candidate
                yield self._candidate(self.exact, solver, damping, "ggn", solutions=solutions)

    def _plan(self, group_dimension: int) -> FeaturePlan:
        exclude = LINEAR_ONLY if self.task.name == "language" else ()
        return plan_features(self.truths.model, FeatureSettings(group_dimension=group_dimension, exclude=exclude))

    def _measure(self, model: nn.Module, plan: FeaturePlan) -> MeasuredTask:
        found = [
            tuple(iterate_features(self.adapter, model, examples, plan, batch_size=_BATCH))
            for examples in (self.training, self.queries)
        ]
        return MeasuredTask(plan, found[0], GradientBatch.joined(found[1]))

    def _vectors(self, kind: str, measured: MeasuredTask, model: nn.Module | None = None) -> CurvaturePieces:
        model = self.truths.model if model is None else model
        if kind == "empirical":
            return observed_vectors(measured.rows, measured.plan)
        draws = [
            model_vectors(self.adapter, model, self.training, measured.plan, kind=kind, seed=seed)
            for seed in range(1 if kind == "ggn" or self.task.name == "language" else _DRAWS)
        ]
        return dataclasses.replace(draws[0], pieces=chain.from_iterable(draw.pieces for draw in draws))

    def _candidate(
        self,
        measured: MeasuredTask,
        method: str,
        damping: float | None = None,
        kind: str | None = None,
        horizon: float | None = None,
        **needs: Any,
    ) -> Candidate:
        prepared = prepare_queries(
            MethodSpec(method, damping=Damping(0.0, 0.0 if damping is None else damping), horizon=horizon),
            measured.queries,
            measured.plan,
            **needs,
        )
        parameters = {} if kind is None else {"curvature": kind}
        return Candidate(ENGINE, method, _contributed(prepared, measured), parameters, damping, measured.plan)


def _contributed(prepared: PreparedQueries, measured: MeasuredTask) -> Tensor:
    streamed = contributions(prepared, lambda: measured.rows, measured.plan)
    return torch.cat([block.values for block in streamed()], dim=1)
