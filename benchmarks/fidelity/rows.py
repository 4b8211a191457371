"""Rows of the results: each method and weighting at the setting that was best on the selection queries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fidelity.candidates import ENGINE, MORE, Candidate
from fidelity.judgement import Comparison, Matrix, Prediction, Question, compare, standard_error
from fidelity.weighting import Weighted
from gradtrail.attribution.features.weights import group_weights
from gradtrail.attribution.weighting.learning import effective_groups

BASELINES = "baseline"
SWEPT = ("influence", "influence_global")
"""Methods whose every damping is in the results, against halves and LDS, as the picture shows them."""
Key = tuple[int, str, str, str]
"""Place of the question, engine, method, weighting."""


@dataclass(frozen=True)
class Chosen:
    """The best setting of one method under one weighting for one question; `ranks` are of the report queries."""

    prediction: Prediction
    selected: float
    ranks: Matrix


@dataclass
class Judged:
    """All candidates of a task against all its questions, one candidate at a time."""

    task: str
    asked: Sequence[Question]
    parts: dict[str, list[int]]
    chosen: dict[Key, Chosen] = field(default_factory=dict)
    sweep: list[dict[str, Any]] = field(default_factory=list)
    _ceilings: dict[int, float] = field(default_factory=dict)

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Keep whatever is best on the selection queries so far."""
        for candidate in candidates:
            for place, prediction in Weighted(candidate, self.asked, self.parts).predictions():
                self._consider(place, prediction)

    def best(self, place: int, *, ours: bool) -> Chosen | None:
        """The best of all our methods and weightings, or of all peers, on the selection queries."""
        found = [
            each
            for (asked, engine, _, _), each in self.chosen.items()
            if asked == place and engine not in {BASELINES, MORE} and (engine == ENGINE) == ours
        ]
        return max(found, key=lambda each: each.selected, default=None)

    def ceiling(self, place: int) -> float:
        """Of a question on the report queries, as Spearman."""
        if place not in self._ceilings:
            self._ceilings[place] = self.asked[place].ceiling(self.parts["report"])
        return self._ceilings[place]

    def comparison(self, place: int) -> Comparison | None:
        """Best of ours against best peer on the report queries."""
        ours, theirs = self.best(place, ours=True), self.best(place, ours=False)
        if ours is None or theirs is None:
            return None
        return compare(ours.ranks, theirs.ranks, self.ceiling(place))

    def gain(self, place: int, method: str, weighting: str) -> Comparison | None:
        """A weighting of ours against uniform, each at its own best setting, on the report queries."""
        ours = self.chosen.get((place, ENGINE, method, weighting))
        uniform = self.chosen.get((place, ENGINE, method, "uniform"))
        if ours is None or uniform is None:
            return None
        return compare(ours.ranks, uniform.ranks, self.ceiling(place))

    def rows(self) -> list[dict[str, Any]]:
        """One a question, engine, method and weighting."""
        return [self._row(key, each) for key, each in sorted(self.chosen.items(), key=lambda item: item[0])]

    def _consider(self, place: int, prediction: Prediction) -> None:
        question, total = self.asked[place], prediction.total
        selected = float(question.ranks(total, self.parts["select"]).mean())
        reported = self.parts["report"]
        candidate = prediction.candidate
        if self._is_swept(question, prediction):
            self.sweep.append(
                {
                    "task": self.task,
                    "method": candidate.method,
                    "curvature": candidate.parameters.get("curvature", ""),
                    "metric": question.metric,
                    "steps": question.steps,
                    "damping": candidate.damping,
                    "value": float(question.ranks(total, reported).mean()),
                }
            )
        key = (place, candidate.engine, candidate.method, prediction.weighting_name)
        if key not in self.chosen or selected > self.chosen[key].selected:
            self.chosen[key] = Chosen(prediction, selected, question.ranks(total, reported))

    @staticmethod
    def _is_swept(question: Question, prediction: Prediction) -> bool:
        candidate = prediction.candidate
        return (
            (candidate.engine, prediction.weighting_name) == (ENGINE, "uniform")
            and candidate.method in SWEPT
            and candidate.parameters.get("curvature") != "empirical"
            and question.metric != "fidelity_loo"
        )

    def _row(self, key: Key, each: Chosen) -> dict[str, Any]:
        place, engine, method, weighting = key
        question, candidate = self.asked[place], each.prediction.candidate
        row = {
            "task": self.task,
            "engine": engine,
            "method": method,
            "weighting": weighting,
            "metric": question.metric,
            "steps": question.steps,
            "value": float(each.ranks.mean()),
            "standard_error": standard_error(each.ranks),
            "ceiling": self.ceiling(place),
            "value_on_selection_queries": each.selected,
            "damping": candidate.damping,
            **candidate.parameters,
        }
        plan, fitted = candidate.plan, each.prediction.weighting
        if plan is not None and fitted.group_weights:
            weights = group_weights(fitted, plan)
            row["effective_groups"] = effective_groups(weights / weights.sum())
        return row
