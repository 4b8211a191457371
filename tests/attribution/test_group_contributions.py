from dataclasses import replace

import pytest
import torch
from torch import nn

from gradtrail.attribution.adapters.base import ClassificationAdapter
from gradtrail.attribution.curvature.spectrum import Spectrum, margin_vectors
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.features.weights import stored_vectors
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.methods.needs import KERNEL
from gradtrail.attribution.methods.registry import find_method
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.scoring.joint import Member, scoring_pass
from gradtrail.attribution.scoring.kept_contributions import ScoredIndex, group_contributions, split_scores
from gradtrail.attribution.scoring.passes import score_pass
from gradtrail.errors import StoreError
from gradtrail.nouns import Attribution, Example, Weighting

OUTPUTS, TOP = 4, 6


class Classifier(ClassificationAdapter):
    input_dtype = torch.float64
    seed = 0

    def build_model(self):
        torch.manual_seed(self.seed)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    def training_data(self):
        generator = torch.Generator().manual_seed(1)
        return [Example(f"row-{i:02d}", torch.randn(5, generator=generator), i % 3) for i in range(60)]


class Scored:
    """An audit in small: outputs scored by a method over as many checkpoints as it takes, the strongest kept."""

    def __init__(self, method, weighting=None, stored=None, dtype="float64", checkpoints=1):
        adapter = Classifier()
        examples = adapter.training_data()
        self.combination = find_method(method).combination
        self.members, self.kept, self.reads = [], [], []
        for seed in range(checkpoints):
            adapter.seed = seed
            model = adapter.build_model() if dtype == "float64" else adapter.build_model().float()
            adapter.input_dtype = next(model.parameters()).dtype
            self.plan = plan_features(model, FeatureSettings(group_dimension=12, dtype=dtype))
            queries = compute_features(adapter, model, examples[:OUTPUTS], self.plan)
            rows = compute_features(adapter, model, examples[OUTPUTS:], self.plan)
            needs = {"learning_rate": 0.1 * (seed + 1)}
            if KERNEL in find_method(method).needs:
                needs["kernel"] = Spectrum.fit(margin_vectors(lambda rows=rows: [rows], self.plan))
            prepared = prepare_queries(
                MethodSpec(method), queries, self.plan, weighting, stored_weighting=stored, **needs
            )
            rows = replace(rows, vectors=stored_vectors(rows.vectors, self.plan, stored))
            self.members.append(Member(prepared, lambda rows=rows: [rows]))
            self.kept.append(ScoredIndex(prepared, lambda ids, rows=rows: self._read(rows, ids)))
        self.result = score_pass(scoring_pass(self.members, self.combination), top_k=TOP)
        self.attributions = [
            Attribution(output_id, example_id, side, rank, score)
            for number, output_id in enumerate(self.members[0].queries.query_ids)
            for side, ranked in (("proponent", self.result.proponents), ("opponent", self.result.opponents))
            for rank, (example_id, score) in enumerate(ranked[number], start=1)
        ]

    def _read(self, rows, ids):
        self.reads.append(set(ids))
        found = [place for place, name in enumerate(rows.example_ids) if name in set(ids)]
        places = torch.tensor(found, dtype=torch.int64)
        for part in torch.split(places, 7):
            yield GradientBatch(
                [rows.example_ids[place] for place in part.tolist()],
                rows.vectors[part],
                rows.losses[part],
                rows.squared_norms[part],
            )

    def split(self):
        values = torch.empty(len(self.attributions), len(self.plan.groups), dtype=torch.float64)
        for block in split_scores(self.kept, self.attributions, self.plan, self.combination):
            values[block.places] = block.values
        return values

    def contributions(self, attributions=None):
        return group_contributions(
            self.kept, self.attributions if attributions is None else attributions, self.plan, self.combination
        )


LOPSIDED = Weighting("further_training", {"0": 0.2, "2": 2.5, "4": 0.3})


@pytest.mark.parametrize(
    ("method", "weighting", "stored", "checkpoints"),
    [
        ("grad_dot", None, None, 1),
        ("grad_cos", LOPSIDED, None, 1),
        ("grad_dot", LOPSIDED, LOPSIDED, 1),
        ("tracin_cp", LOPSIDED, None, 3),
        ("trak", None, None, 1),
        ("trak", LOPSIDED, None, 3),
    ],
)
def test_the_parts_of_every_score_add_up_to_it(method, weighting, stored, checkpoints):
    scored = Scored(method, weighting, stored, checkpoints=checkpoints)
    scores = torch.tensor([attribution.score for attribution in scored.attributions], dtype=torch.float64)
    assert len(scores) > OUTPUTS * TOP
    torch.testing.assert_close(scored.split().sum(1), scores, rtol=1e-6, atol=0)


def test_in_float32_the_parts_add_up_to_a_few_digits_less():
    scored = Scored("grad_cos", dtype="float32")
    scores = torch.tensor([attribution.score for attribution in scored.attributions], dtype=torch.float64)
    torch.testing.assert_close(scored.split().sum(1), scores, rtol=1e-4, atol=1e-7)


def test_shares_are_parts_of_the_kept_scores_and_add_up_to_one():
    scored = Scored("grad_dot", LOPSIDED)
    split = scored.split()
    found = {(each.output_id, each.side, each.group): each.share for each in scored.contributions()}
    names = [group.name for group in scored.plan.groups]
    for output_id in scored.members[0].queries.query_ids:
        for side in ("proponent", "opponent"):
            places = [
                place
                for place, each in enumerate(scored.attributions)
                if (each.output_id, each.side) == (output_id, side)
            ]
            expected = split[places].sum(0) / split[places].sum()
            shares = torch.tensor([found[output_id, side, name] for name in names], dtype=torch.float64)
            torch.testing.assert_close(shares, expected)
            assert shares.sum().item() == pytest.approx(1, abs=1e-12)
    for side in ("proponent", "opponent"):
        for name in names:
            of_outputs = [found[output_id, side, name] for output_id in scored.members[0].queries.query_ids]
            assert found[None, side, name] == pytest.approx(sum(of_outputs) / OUTPUTS)


def test_they_come_overall_first_then_by_output_and_in_the_order_of_the_model():
    found = Scored("grad_dot").contributions()
    assert [each.group for each in found[:6]] == ["0", "2", "4", "0", "2", "4"]
    assert [(each.output_id, each.side) for each in found[::3]] == [
        (None, "proponent"),
        (None, "opponent"),
        *((f"row-{number:02d}", side) for number in range(OUTPUTS) for side in ("proponent", "opponent")),
    ]


def test_a_weighting_that_leaves_one_group_gives_it_everything():
    scored = Scored("grad_dot", Weighting("x", {"0": 0.0, "2": 1.0, "4": 0.0}))
    shares = {each.group: each.share for each in scored.contributions() if each.output_id is None}
    assert shares == {"0": 0.0, "2": 1.0, "4": 0.0}


def test_only_kept_rows_are_read_once_and_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr("gradtrail.attribution.scoring.kept_contributions._EXAMPLES_AT_ONCE", 5)
    monkeypatch.setattr("gradtrail.attribution.scoring.kept_contributions._MOST_VALUES", 100)
    scored = Scored("grad_dot")
    small = scored.contributions()
    assert max(map(len, scored.reads)) == 5
    assert sorted(name for read in scored.reads for name in read) == sorted({a.example_id for a in scored.attributions})
    monkeypatch.undo()
    whole = scored.contributions()
    assert [each.share for each in small] == pytest.approx([each.share for each in whole], rel=1e-12)


def test_a_side_without_attributions_has_no_contributions():
    scored = Scored("grad_dot")
    proponents = [each for each in scored.attributions if each.side == "proponent"]
    assert {each.side for each in scored.contributions(proponents)} == {"proponent"}
    assert scored.contributions([]) == []
    assert scored.contributions([replace(proponents[0], score=0.0)]) == []


def test_what_was_not_scored_is_refused():
    scored = Scored("grad_dot")
    first = scored.attributions[0]
    with pytest.raises(StoreError, match="no longer holds example nobody"):
        scored.contributions([replace(first, example_id="nobody")])
    with pytest.raises(StoreError, match="Output stranger is not among the queries"):
        scored.contributions([replace(first, output_id="stranger")])
    with pytest.raises(StoreError, match="but their parts by group to"):
        scored.contributions([replace(first, score=100 * first.score)])
    other = plan_features(Classifier().build_model(), FeatureSettings(group_dimension=4))
    with pytest.raises(StoreError, match="and the plan 12"):
        group_contributions(scored.kept, scored.attributions, other, "one")
