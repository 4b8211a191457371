from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gradtrail.attribution.adapters.base import ClassificationAdapter
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.scoring.contribution_blocks import contributions
from gradtrail.attribution.scoring.joint import Member, scoring_pass
from gradtrail.attribution.weighting.fitting import FittingSettings, fit_weighting
from gradtrail.attribution.weighting.learning import (
    TopKSettings,
    bounded,
    effective_groups,
    learn_top_k,
    objective,
    strongest,
)
from gradtrail.errors import DataError, UsageError
from gradtrail.nouns import Example

QUERIES, EXAMPLES, GROUPS = 6, 80, 4


def _plan(groups=GROUPS):
    return SimpleNamespace(groups=[SimpleNamespace(name=f"layer-{place}") for place in range(groups)])


def _blocks(values, size=17):
    return lambda: iter(torch.split(values, size, dim=1))


def _noise(seed=0, groups=GROUPS):
    return torch.randn(QUERIES, EXAMPLES, groups, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _planted(informative=2):
    """Noise everywhere; in one group, five examples of each query stand far out."""
    values = _noise()
    for query in range(QUERIES):
        values[query, query * 5 : query * 5 + 5, informative] += 12
    return values


def _weights(weighting):
    return torch.tensor(list(weighting.group_weights.values()), dtype=torch.float64)


def test_the_streamed_objective_is_the_one_of_the_paper_in_full():
    values, logits = _noise(), torch.tensor([0.3, -0.2, 0.9, 0.0], dtype=torch.float64)
    scores = values @ logits.softmax(0)
    expected = (scores / scores.norm(dim=1, keepdim=True)).topk(7, dim=1).values.mean()
    moments = values.transpose(1, 2) @ values
    for size in (1, 17, EXAMPLES):
        top = strongest(_blocks(values, size), logits.softmax(0), 7)
        assert objective(logits, top, moments).item() == pytest.approx(expected.item(), rel=1e-12)


def test_its_gradient_agrees_with_finite_differences():
    values, logits = _noise(1), torch.tensor([0.3, -0.2, 0.9, 0.0], dtype=torch.float64)
    moments = values.transpose(1, 2) @ values

    def full(at):
        return objective(at, strongest(_blocks(values), at.detach().softmax(0), 7), moments)

    moved = logits.clone().requires_grad_(True)
    full(moved).backward()
    steps = 1e-6 * torch.eye(GROUPS, dtype=torch.float64)
    differences = torch.stack([(full(logits + step) - full(logits - step)) / 2e-6 for step in steps])
    torch.testing.assert_close(moved.grad, differences, rtol=1e-6, atol=1e-9)


def test_a_group_that_alone_is_informative_gets_the_most_weight():
    settings = TopKSettings(k=5, passes=10, steps=30, learning_rate=0.05)
    weighting = learn_top_k(_blocks(_planted()), _plan(), settings)
    weights = _weights(weighting)
    assert weights.argmax() == 2
    assert weights[2] > 1.5 * weights[[0, 1, 3]].max()
    assert weights.mean().item() == pytest.approx(1)
    assert weighting.evidence["objective_learned"] > weighting.evidence["objective_uniform"]
    assert weighting.objective == "self_supervised"


@pytest.mark.parametrize("part", [0.0, 0.5, 0.9, 1.0])
def test_the_effective_number_of_groups_stays_above_its_bound(part):
    settings = TopKSettings(k=5, passes=5, steps=100, learning_rate=0.2, weight_decay=0, least_effective_groups=part)
    weighting = learn_top_k(_blocks(_planted()), _plan(), settings)
    reached = effective_groups(_weights(weighting) / GROUPS)
    assert reached == pytest.approx(weighting.evidence["effective_groups"])
    assert reached >= part * GROUPS - 1e-6
    if part == 0:
        assert reached < 1.5
    else:
        assert reached == pytest.approx(part * GROUPS, rel=1e-3)


def test_bounding_leaves_wide_weights_alone_and_keeps_their_order():
    wide = torch.tensor([0.1, -0.1, 0.0], dtype=torch.float64)
    torch.testing.assert_close(bounded(wide + 5, 2.0), wide)
    narrow = torch.tensor([9.0, 1.0, 0.0], dtype=torch.float64)
    held = bounded(narrow, 2.0)
    assert effective_groups(held.softmax(0)) == pytest.approx(2.0, rel=1e-9)
    assert held.argsort().tolist() == narrow.argsort().tolist()


def test_permuting_groups_permutes_weights():
    order = [3, 1, 0, 2]
    settings = TopKSettings(k=5, passes=3, steps=20)
    straight = _weights(learn_top_k(_blocks(_planted()), _plan(), settings))
    permuted = _weights(learn_top_k(_blocks(_planted()[:, :, order]), _plan(), settings))
    torch.testing.assert_close(permuted, straight[order])


def test_learning_is_deterministic():
    first, second = (learn_top_k(_blocks(_planted()), _plan(), TopKSettings(k=5)) for _ in range(2))
    assert first == second


def test_nothing_to_learn_from_gives_the_uniform_weighting_and_says_why():
    one = learn_top_k(_blocks(_noise(groups=1)), _plan(1))
    none = learn_top_k(_blocks(torch.zeros(QUERIES, EXAMPLES, GROUPS, dtype=torch.float64)), _plan())
    for weighting, cause in ((one, "one group"), (none, "no contribution")):
        assert weighting.group_weights == {}
        assert weighting.objective == "uniform"
        assert weighting.evidence["fell_back_because"].startswith(cause)


def test_a_query_without_any_contribution_is_left_out():
    values = _planted()
    values[0] = 0
    assert learn_top_k(_blocks(values), _plan()).evidence["queries"] == QUERIES - 1


def test_requests_that_cannot_be_answered_are_refused():
    with pytest.raises(UsageError, match="2 queries are too few"):
        learn_top_k(_blocks(_noise()[:2]), _plan())
    with pytest.raises(UsageError, match="The 80 strongest of 80 examples cannot stand out"):
        learn_top_k(_blocks(_noise()), _plan(), TopKSettings(k=80))
    broken = _noise()
    broken[1, 2, 3] = float("nan")
    with pytest.raises(DataError, match="are not finite"):
        learn_top_k(_blocks(broken), _plan())
    with pytest.raises(DataError, match="not of 3 groups"):
        learn_top_k(_blocks(_noise()), _plan(3))
    with pytest.raises(DataError, match="no contributions"):
        learn_top_k(lambda: iter(()), _plan())
    for bad in ({"k": 0}, {"passes": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}, {"least_effective_groups": 2}):
        with pytest.raises(UsageError, match="Learning weights with"):
            TopKSettings(**bad)


class Classifier(ClassificationAdapter):
    input_dtype = torch.float64

    def build_model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def training_data(self):
        generator = torch.Generator().manual_seed(0)
        return [Example(f"row-{i}", torch.randn(6, generator=generator), i % 3) for i in range(30)]


@pytest.mark.parametrize("method", ["grad_dot", "grad_cos"])
def test_contributions_add_up_to_the_scores_and_learned_weights_apply_to_them(method):
    adapter = Classifier()
    model, examples = adapter.build_model(), adapter.training_data()
    plan = plan_features(model, FeatureSettings(dtype="float64"))
    rows, queries = (compute_features(adapter, model, part, plan) for part in (examples[5:], examples[:5]))
    prepared = prepare_queries(MethodSpec(method), queries, plan)
    streamed = contributions(prepared, lambda: [rows], plan)
    [block] = (each.values for each in streamed())
    [(_, scores)] = scoring_pass([Member(prepared, lambda: [rows])]).batches()
    torch.testing.assert_close(block.sum(2), torch.from_numpy(scores))
    weighting = fit_weighting(
        "self_supervised", plan, FittingSettings(ascent=TopKSettings(k=3)), contributions=streamed
    )
    assert set(weighting.group_weights) == {group.name for group in plan.groups}
    weighted = prepare_queries(MethodSpec(method), queries, plan, weighting)
    [(_, scores)] = scoring_pass([Member(weighted, lambda: [rows])]).batches()
    torch.testing.assert_close(block @ _weights(weighting), torch.from_numpy(scores))
