from __future__ import annotations

import dataclasses

import pytest
import torch

from gradtrail.attribution.curvature.blocks import BlockCurvature
from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.spectrum import Spectrum, margin_vectors
from gradtrail.attribution.curvature.vectors import observed_vectors
from gradtrail.attribution.features.margins import one_minus_probability
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.methods.rules import find_method, prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.scoring.joint import Member, scoring_pass
from gradtrail.attribution.scoring.passes import overall_influence, overall_of_pass, score, score_pass
from gradtrail.attribution.scoring.self_scores import self_influence, summed_self_influence
from gradtrail.errors import DataError, UsageError

RATES = (0.1, 0.05, 0.02)


def chosen(rows: GradientBatch, order: list[int]) -> GradientBatch:
    return GradientBatch(
        example_ids=[rows.example_ids[row] for row in order],
        vectors=rows.vectors[order],
        losses=rows.losses[order],
        squared_norms=rows.squared_norms[order],
        attributes={name: [values[row] for row in order] for name, values in rows.attributes.items()},
    )


def batches(rows: GradientBatch, size: int) -> list[GradientBatch]:
    return [
        chosen(rows, list(range(start, min(start + size, len(rows.example_ids)))))
        for start in range(0, len(rows.example_ids), size)
    ]


@pytest.fixture
def checkpoints(convolutional):
    """The same examples at three checkpoints."""
    adapter, model, examples = convolutional
    plan = plan_features(model, FeatureSettings(group_dimension=16, dtype="float64"))
    measured = []
    for seed in range(3):
        torch.manual_seed(seed)
        measured.append(compute_features(adapter, adapter.build_model(), examples, plan))
    return plan, measured


def by_example(result, query: int) -> dict[str, float]:
    return dict(result.proponents[query] + result.opponents[query])


@pytest.mark.parametrize("disorder", ["same order", "other batches", "shuffled"])
def test_tracin_cp_in_one_pass_is_the_sum_over_checkpoints_by_hand(checkpoints, disorder):
    plan, measured = checkpoints
    expected = sum(rate * rows.vectors @ rows.vectors.T for rate, rows in zip(RATES, measured, strict=True))
    members = []
    for position, (rate, rows) in enumerate(zip(RATES, measured, strict=True)):
        order = list(range(12))
        if disorder == "shuffled" and position:
            order = torch.randperm(12, generator=torch.Generator().manual_seed(position)).tolist()
        size = 5 + (position if disorder != "same order" else 0)
        prepared = prepare_queries(MethodSpec("tracin_cp"), rows, plan, learning_rate=rate)
        members.append(Member(prepared, lambda rows=rows, order=order, size=size: batches(chosen(rows, order), size)))
    scoring = scoring_pass(members, "sum")
    result = score_pass(scoring, top_k=100)
    assert result.example_count == 12
    for query in range(12):
        found = by_example(result, query)
        row = [found.get(example_id, 0.0) for example_id in measured[0].example_ids]
        assert row == pytest.approx(expected[query].tolist(), rel=1e-9)
    overall = overall_of_pass(scoring, result, top_k=3, permutations=20)
    assert sum(share.share for share in overall.shares["proponent"]["source"].values()) == pytest.approx(1)


@pytest.mark.parametrize("method", ["influence", "influence_global", "horizon"])
def test_influence_over_checkpoints_adds_up_what_each_finds_with_its_own_curvature(checkpoints, method):
    plan, measured = checkpoints
    expected, members = torch.zeros(12, 12, dtype=torch.float64), []
    for rows in measured:
        vectors = observed_vectors([rows], plan)
        curvature = BlockCurvature.fit(vectors) if method == "influence" else Spectrum.fit(vectors)
        given = {"curvature" if method == "influence" else "spectrum": curvature}
        prepared = prepare_queries(MethodSpec(method, damping=Damping(0.5)), rows, plan, **given)
        expected += prepared.vectors @ rows.vectors.T
        members.append(Member(prepared, lambda rows=rows: batches(rows, 5)))
    result = score_pass(scoring_pass(members, find_method(method).combination), top_k=100)
    for query in range(12):
        found = by_example(result, query)
        row = [found.get(example_id, 0.0) for example_id in measured[0].example_ids]
        assert row == pytest.approx(expected[query].tolist(), rel=1e-9)


def test_one_member_gives_what_one_index_gives(checkpoints):
    plan, measured = checkpoints
    prepared = prepare_queries(MethodSpec("grad_dot"), measured[0], plan)
    alone = score(prepared, lambda: [measured[0]], top_k=5)
    joint = scoring_pass([Member(prepared, lambda: [measured[0]])], "one")
    together = score_pass(joint, top_k=5)
    assert alone.proponents == together.proponents
    assert alone.attribute_mass["proponent"].keys() == together.attribute_mass["proponent"].keys()
    left = overall_influence(prepared, lambda: [measured[0]], alone, top_k=5, permutations=10)
    assert overall_of_pass(joint, together, top_k=5, permutations=10) == left


def test_a_trak_ensemble_averages_kernels_and_margins_separately(checkpoints):
    plan, measured = checkpoints
    kernels, margins, members = [], [], []
    for rows in measured:
        own = one_minus_probability(rows.losses)
        gradients = rows.vectors / own.unsqueeze(1)
        damped = gradients.T @ gradients
        damped += 0.1 * damped.trace() / plan.dimension * torch.eye(plan.dimension, dtype=torch.float64)
        kernels.append(gradients @ torch.linalg.inv(damped) @ gradients.T)
        margins.append(own)
        kernel = Spectrum.fit(margin_vectors(lambda rows=rows: [rows], plan))
        prepared = prepare_queries(MethodSpec("trak", damping=Damping(0.1)), rows, plan, kernel=kernel)
        members.append(Member(prepared, lambda rows=rows: batches(rows, 5)))
    expected = torch.stack(kernels).mean(0) * torch.stack(margins).mean(0)
    result = score_pass(scoring_pass(members, "mean_margin"), top_k=100)
    for query in range(12):
        found = by_example(result, query)
        row = [found.get(example_id, 0.0) for example_id in measured[0].example_ids]
        assert row == pytest.approx(expected[query].tolist(), rel=1e-6, abs=1e-9)
    single = score_pass(scoring_pass(members[:1], "mean_margin"), top_k=100)
    plain = score(members[0].queries, members[0].rows, top_k=100)
    assert by_example(single, 3) == pytest.approx(by_example(plain, 3), rel=1e-9)


def test_examples_that_one_checkpoint_lacks_are_named_or_counted_but_never_dropped_in_silence(checkpoints):
    plan, measured = checkpoints
    members = []
    for position, rows in enumerate(measured):
        kept = chosen(rows, list(range(position, 12)))
        prepared = prepare_queries(MethodSpec("tracin_cp"), rows, plan, learning_rate=0.1)
        members.append(Member(prepared, lambda kept=kept: batches(kept, 4)))
    with pytest.raises(DataError, match=r"2 example\(s\) are in some of the indexes only: example-000, example-001"):
        score_pass(scoring_pass(members, "sum"), top_k=3)
    missing: set[str] = set()
    result = score_pass(scoring_pass(members, "sum", missing.add), top_k=3)
    assert result.example_count == 10
    assert missing == {"example-000", "example-001"}


def test_members_that_do_not_belong_together_are_refused(checkpoints):
    plan, measured = checkpoints
    first = Member(prepare_queries(MethodSpec("grad_dot"), measured[0], plan), lambda: [measured[0]])
    other = dataclasses.replace(first, queries=dataclasses.replace(first.queries, query_ids=("elsewhere",) * 12))
    with pytest.raises(UsageError, match="No index"):
        scoring_pass([], "sum")
    with pytest.raises(UsageError, match="scores one index, and 2 were given"):
        scoring_pass([first, first], "one")
    with pytest.raises(UsageError, match="different outputs"):
        scoring_pass([first, other], "sum")


def test_self_influence_is_the_diagonal_of_the_scores(checkpoints):
    plan, measured = checkpoints
    rows = measured[0]
    for method, needs in (
        ("grad_dot", {}),
        ("grad_cos", {}),
        ("datainf", {"training_rows": lambda: batches(rows, 5)}),
        ("trak", {"kernel": Spectrum.fit(margin_vectors(lambda: [rows], plan))}),
    ):
        prepared = prepare_queries(MethodSpec(method), rows, plan, **needs)
        result = score(prepared, lambda: batches(rows, 5), top_k=100)
        found = dict(
            pair
            for ids, values in self_influence(MethodSpec(method), lambda: batches(rows, 5), plan, **needs)
            for pair in zip(ids, values.tolist(), strict=True)
        )
        for query, example_id in enumerate(rows.example_ids):
            assert found[example_id] == pytest.approx(by_example(result, query)[example_id], rel=1e-6)


def test_self_influence_of_several_checkpoints_adds_up(checkpoints):
    plan, measured = checkpoints
    parts = [
        self_influence(MethodSpec("tracin_cp"), lambda rows=rows: [rows], plan, learning_rate=rate)
        for rate, rows in zip(RATES, measured, strict=True)
    ]
    found = summed_self_influence(parts)
    for row, example_id in enumerate(measured[0].example_ids):
        expected = sum(rate * rows.vectors[row].square().sum() for rate, rows in zip(RATES, measured, strict=True))
        assert found[example_id] == pytest.approx(expected.item(), rel=1e-9)
