"""Each candidate under each weighting: uniform, learned without labels, and fitted to measured effects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fidelity.candidates import Candidate
from fidelity.judgement import Matrix, Prediction, Question, predicted
from gradtrail.attribution.scoring.contribution_blocks import ContributionBlock
from gradtrail.attribution.weighting.effects import EffectSplit
from gradtrail.attribution.weighting.fitting import (
    FittingSettings,
    best_or_uniform,
    chosen_or_uniform,
    fit_weighting,
    self_supervised_choices,
)
from gradtrail.attribution.weighting.learning import TopKSettings
from gradtrail.nouns import Weighting

WEIGHTINGS = ("uniform", "self_supervised", "further_training", "retraining")
"""The last is fitted as the third is, to models retrained without sets of examples, and predicts those alone."""


class Weighted:
    """The weightings of one candidate; what is fitted once serves every question."""

    def __init__(
        self,
        candidate: Candidate,
        asked: Sequence[Question],
        parts: dict[str, list[int]],
        settings: FittingSettings | None = None,
    ) -> None:
        self._candidate = candidate
        self._asked = asked
        self._parts = parts
        self._settings = settings or FittingSettings(ascent=TopKSettings(k=min(10, self._examples - 1)))
        self._by_group = [predicted(candidate, question) for question in asked]

    @property
    def _examples(self) -> int:
        return self._candidate.contributions.shape[1]

    def predictions(self) -> Iterator[tuple[int, Prediction]]:
        """The place of a question, and what the candidate predicts for it under a weighting."""
        for place, by_group in enumerate(self._by_group):
            yield place, Prediction(self._candidate, "uniform", Weighting(), by_group)
        plan = self._candidate.plan
        if plan is None or len(plan.groups) == 1:
            return
        learned = self._self_supervised()
        fitted = {
            question.steps: self._fitted(question, by_group)
            for question, by_group in zip(self._asked, self._by_group, strict=True)
            if question.metric == "fidelity_subset"
        }
        for place, (question, by_group) in enumerate(zip(self._asked, self._by_group, strict=True)):
            split = EffectSplit(by_group, question.measured, self._parts["fit"], self._parts["select"])
            chosen = best_or_uniform(learned, plan, split)
            yield place, Prediction(self._candidate, "self_supervised", chosen, by_group)
            # Of models trained from scratch, the longest further training speaks most.
            effects = fitted[max(fitted) if question.metric == "lds" else question.steps]
            yield place, Prediction(self._candidate, "further_training", effects, by_group)
            if question.metric == "lds":
                yield place, Prediction(self._candidate, "retraining", self._fitted(question, by_group), by_group)

    def _self_supervised(self) -> list[Weighting]:
        """Learned on the first queries without any effect; those on the second say how strongly to weight."""
        plan = self._candidate.plan
        assert plan is not None

        def stream() -> Iterator[ContributionBlock]:
            values = self._candidate.contributions[self._parts["fit"]]
            yield ContributionBlock([""] * values.shape[1], {}, values)

        return self_supervised_choices(plan, self._settings, contributions=stream)

    def _fitted(self, question: Question, by_group: Matrix) -> Weighting:
        """Fitted on the first queries; uniform where it does no better on the second, as in gradtrail itself."""
        plan = self._candidate.plan
        assert plan is not None
        split = EffectSplit(by_group, question.measured, self._parts["fit"], self._parts["select"])
        return chosen_or_uniform(fit_weighting("further_training", plan, self._settings, effects=split), plan, split)
