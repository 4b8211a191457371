from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gradtrail.attribution.features.weights import group_weights
from gradtrail.attribution.scoring.contribution_blocks import ContributionBlock
from gradtrail.attribution.weighting.aspects import same_value_share
from gradtrail.attribution.weighting.effects import EffectSplit, chosen_or_uniform, fit_effects
from gradtrail.attribution.weighting.fitting import Aspect, FittingSettings, fit_weighting
from gradtrail.attribution.weighting.learning import TopKSettings, effective_groups
from gradtrail.attribution.weighting.levels import block_of, group_ties, kind_of
from gradtrail.errors import DataError, UsageError
from gradtrail.nouns import Weighting

QUERIES, EXAMPLES, GROUPS, SETS = 12, 90, 5, 24
FIT, SELECT, REPORT = range(4), range(4, 8), range(8, 12)
ASCENT = TopKSettings(k=5, passes=8, steps=20, learning_rate=0.05)


def _plan(*names):
    return SimpleNamespace(groups=[SimpleNamespace(name=name) for name in names or map("layer-{}".format, range(5))])


def _streamed(values, attributes, size=17):
    def blocks():
        for start in range(0, values.shape[1], size):
            part = slice(start, start + size)
            ids = [f"row-{place}" for place in range(values.shape[1])[part]]
            yield ContributionBlock(ids, {name: found[part] for name, found in attributes.items()}, values[:, part])

    return blocks


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STYLES = ["oil", "ink", "chalk"]
OF_EXAMPLES = [STYLES[place % 3] for place in range(EXAMPLES)]
OF_QUERIES = tuple(STYLES[place % 3] for place in range(QUERIES))


def _styled(informative=2):
    """Noise; in one group, five examples of the query's own style score far higher, and the others of it higher."""
    values = _normal(QUERIES, EXAMPLES, GROUPS)
    for query in range(QUERIES):
        same = torch.tensor([style == OF_QUERIES[query] for style in OF_EXAMPLES])
        values[query, same, informative] += 1
        values[query, same.nonzero()[:5, 0], informative] += 8
    return values


def _planted(weights, noise=0.0, seed=0):
    """Predicted effects of each group, and measured ones in which the groups have these weights, in another unit."""
    predicted = _normal(SETS, QUERIES, GROUPS, seed=seed).numpy()
    measured = 0.003 * predicted @ np.asarray(weights)
    return predicted, measured + noise * measured.std() * np.random.default_rng(seed).standard_normal(measured.shape)


def _weights(weighting, plan=None):
    return group_weights(weighting, plan or _plan())


def _fit(objective, plan=None, settings=None, *, order=None, level="layer"):
    settings = settings or FittingSettings(level=level, ascent=ASCENT)
    order = order or list(range(GROUPS))
    values = _streamed(_styled()[:, :, order], {"style": OF_EXAMPLES})
    predicted, measured = _planted([0.2, 0.4, 3.0, 0.5, 0.9], noise=0.1)
    return fit_weighting(
        objective,
        plan or _plan(),
        settings,
        contributions=values,
        aspect=Aspect("style", OF_QUERIES),
        effects=EffectSplit(predicted[:, :, order], measured, FIT, SELECT),
    )


OBJECTIVES = ["self_supervised", "further_training", "aspect"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_one_informative_layer_dominates_within_the_bound(objective):
    weighting = _fit(objective)
    weights = _weights(weighting)
    assert weights.argmax() == 2
    assert weights[2] > 1.5 * weights[[0, 1, 3, 4]].max()
    assert weights.mean().item() == pytest.approx(1)
    evidence = weighting.evidence
    assert evidence["effective_groups"] == pytest.approx(effective_groups(weights / GROUPS))
    assert GROUPS / 2 - 1e-6 <= evidence["effective_groups"] < GROUPS
    assert evidence["least_effective_groups"] == GROUPS / 2


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_bound_of_one_keeps_every_weight_equal_and_a_narrow_one_binds_exactly(objective):
    even = _fit(objective, settings=FittingSettings(least_effective_groups=1.0, ascent=ASCENT))
    torch.testing.assert_close(_weights(even), torch.ones(GROUPS, dtype=torch.float64), rtol=0, atol=1e-5)
    held = _fit(objective, settings=FittingSettings(least_effective_groups=0.97, ascent=ASCENT))
    assert held.evidence["effective_groups"] == pytest.approx(0.97 * GROUPS, rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_permuting_groups_permutes_weights(objective):
    order = [3, 1, 4, 0, 2]
    torch.testing.assert_close(_weights(_fit(objective, order=order)), _weights(_fit(objective))[order])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_fitting_is_deterministic(objective):
    assert _fit(objective) == _fit(objective)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("level", "tied"), [("block", [[0, 1], [2, 3]]), ("kind", [[2, 3]])])
def test_tied_groups_get_equal_weights_and_others_differ(objective, level, tied):
    plan = _plan("h.0.attn.query", "h.0.mlp.fc", "h.1.attn.query", "h.1.attn.key", "head")
    weighting = _fit(objective, plan, level=level)
    weights = _weights(weighting, plan)
    assert weighting.evidence["level"] == level
    assert set(weighting.group_weights) == {group.name for group in plan.groups}
    for group in tied:
        assert len({weights[place].item() for place in group}) == 1
    assert len(set(weights.tolist())) == GROUPS - sum(len(group) - 1 for group in tied)
    assert weighting.evidence["effective_groups"] >= GROUPS / 2 - 1e-6


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_layers_that_are_one_block_leave_nothing_to_fit(objective):
    plan = _plan(*(f"h.0.{name}" for name in "abcde"))
    weighting = _fit(objective, plan, level="block")
    assert weighting.group_weights == {}
    assert weighting.evidence["fell_back_because"] == "one group at level block"


def test_levels_are_read_from_names():
    names = {
        "transformer.wte": ("transformer.wte", "embedding"),
        "transformer.h.3.attn.c_proj": ("transformer.h.3", "attention"),
        "transformer.h.3.mlp.c_proj": ("transformer.h.3", "mlp"),
        "transformer.h.3.ln_2": ("transformer.h.3", "norm"),
        "model.layers.11.self_attn.q_proj": ("model.layers.11", "attention"),
        "model.layers.11.post_attention_layernorm.weight": ("model.layers.11", "norm"),
        "bert.encoder.layer.0.attention.output.dense": ("bert.encoder.layer.0", "attention"),
        "bert.encoder.layer.0.attention.output.LayerNorm": ("bert.encoder.layer.0", "norm"),
        "bert.encoder.layer.0.intermediate.dense": ("bert.encoder.layer.0", "mlp"),
        "layer1.0.conv1": ("layer1.0", "convolution"),
        "layer1.0.bn2": ("layer1.0", "norm"),
        "features.4": ("features.4", "other"),
        "conv1": ("conv1", "convolution"),
        "0": ("0", "other"),
    }
    assert {name: (block_of(name), kind_of(name)) for name in names} == names
    ties = group_ties(_plan("h.0.attn.q", "h.0.ln", "h.0.attn.k", "h.1.attn.q", "ln_f"), "kind")
    assert ties.names == ("h.0 attention", "h.0 norm", "h.1 attention", "ln_f")
    assert ties.places.tolist() == [0, 1, 0, 2, 3]
    assert ties.sizes.tolist() == [2, 1, 1, 1]
    assert ties.summed(torch.arange(5.0)).tolist() == [2, 1, 3, 4]
    with pytest.raises(UsageError, match="no level 'depth'"):
        group_ties(_plan(), "depth")


def test_planted_weights_are_recovered_on_noiseless_effects():
    planted = np.array([0.5, 1.0, 2.0, 0.0, 1.5])
    predicted, measured = _planted(planted)
    fitted = _weights(fit_effects(EffectSplit(predicted, measured, FIT, SELECT), _plan()))
    np.testing.assert_allclose(fitted, planted, rtol=0.02, atol=0.02)


def test_no_query_dominates_by_its_size():
    planted = np.array([0.5, 1.0, 2.0, 0.2, 1.3])
    predicted, measured = _planted(planted)
    # One query of the fit measures something else, a thousand times as large.
    predicted[:, 0] *= 1000
    measured[:, 0] = 1000 * measured[::-1, 0]
    fitted = _weights(fit_effects(EffectSplit(predicted, measured, FIT, SELECT), _plan()))
    alone = _weights(fit_effects(EffectSplit(predicted, measured, [1, 2, 3], SELECT), _plan()))
    assert torch.linalg.vector_norm(fitted - alone) < 0.35 * torch.linalg.vector_norm(fitted)
    assert fitted.argmax() == alone.argmax() == 2


def test_fitted_weights_rank_other_queries_better_than_uniform():
    predicted, measured = _planted([0.1, 0.2, 3.0, 0.3, 0.8], noise=0.3)
    split = EffectSplit(predicted, measured, FIT, SELECT)
    weighting = chosen_or_uniform(fit_effects(split, _plan()), _plan(), split)
    assert weighting.objective == "further_training"
    learned, uniform = (split.agreement(weights, REPORT) for weights in (_weights(weighting).numpy(), np.ones(GROUPS)))
    assert learned > uniform + 0.1
    assert weighting.evidence["spearman_learned"] > weighting.evidence["spearman_uniform"]


def test_weights_that_do_not_help_give_way_to_uniform_and_say_why():
    predicted, measured = _planted(np.ones(GROUPS))
    split = EffectSplit(predicted, measured, FIT, SELECT)
    lopsided = Weighting(
        "self_supervised", {group.name: 1.0 + 9 * (group.name == "layer-1") for group in _plan().groups}
    )
    kept = chosen_or_uniform(lopsided, _plan(), split)
    assert kept.group_weights == {}
    assert kept.objective == "uniform"
    assert kept.evidence["objective"] == "self_supervised"
    assert "no better than uniform" in kept.evidence["fell_back_because"]
    assert kept.evidence["spearman_learned"] < kept.evidence["spearman_uniform"] == pytest.approx(1)
    uniform = chosen_or_uniform(Weighting(evidence={"fell_back_because": "one group"}), _plan(), split)
    assert uniform.evidence["fell_back_because"] == "one group"


def test_aspect_weights_bring_examples_of_the_query_s_own_value_to_the_top():
    streamed, aspect = _streamed(_styled(), {"style": OF_EXAMPLES}), Aspect("style", OF_QUERIES)
    weighting = _fit("aspect")
    uniform = same_value_share(streamed, aspect, torch.ones(GROUPS, dtype=torch.float64), 10).mean()
    learned = same_value_share(streamed, aspect, _weights(weighting), 10).mean()
    assert weighting.objective == "aspect:style"
    assert learned > uniform > 1 / 3
    assert weighting.evidence["objective_learned"] > weighting.evidence["objective_uniform"]


def test_streamed_margins_of_an_aspect_are_those_of_the_definition():
    values, aspect, even = _styled(), Aspect("style", OF_QUERIES), torch.ones(GROUPS, dtype=torch.float64)
    scores = values.sum(2) / values.sum(2).norm(dim=1, keepdim=True)
    same = torch.tensor([[style == wanted for style in OF_EXAMPLES] for wanted in OF_QUERIES])
    margins = [
        scores[query, same[query]].topk(5).values.mean() - scores[query, ~same[query]].topk(5).values.mean()
        for query in range(QUERIES)
    ]
    for size in (1, 17, EXAMPLES):
        streamed = _streamed(values, {"style": OF_EXAMPLES}, size)
        settings = FittingSettings(ascent=TopKSettings(k=5, passes=1, steps=1))
        weighting = fit_weighting("aspect", _plan(), settings, contributions=streamed, aspect=aspect)
        assert weighting.evidence["objective_uniform"] == pytest.approx(torch.stack(margins).mean().item(), rel=1e-12)
        share = same_value_share(streamed, aspect, even, 7)
        top = values.sum(2).topk(7, dim=1).indices
        torch.testing.assert_close(share, same.double().gather(1, top).mean(1))


def test_queries_without_the_attribute_or_with_a_value_nobody_has_are_left_out():
    values = ("", "fresco", *OF_QUERIES[2:])
    streamed = _streamed(_styled(), {"style": OF_EXAMPLES})
    weighting = fit_weighting("aspect", _plan(), contributions=streamed, aspect=Aspect("style", values))
    assert weighting.evidence["queries"] == QUERIES - 2
    assert torch.isnan(same_value_share(streamed, Aspect("style", values), torch.ones(GROUPS).double(), 5)[0])
    few = Aspect("style", (*OF_QUERIES[:2], *[""] * (QUERIES - 2)))
    fallen = fit_weighting("aspect", _plan(), contributions=streamed, aspect=few)
    assert fallen.group_weights == {}
    assert fallen.evidence["fell_back_because"] == "only 2 queries can be learned from"


def test_zero_contributions_and_effects_give_the_uniform_weighting_with_a_reason():
    zeros = torch.zeros(QUERIES, EXAMPLES, GROUPS, dtype=torch.float64)
    streamed = _streamed(zeros, {"style": OF_EXAMPLES})
    effects = EffectSplit(np.zeros((SETS, QUERIES, GROUPS)), np.zeros((SETS, QUERIES)), FIT, SELECT)
    for objective in OBJECTIVES:
        weighting = fit_weighting(
            objective, _plan(), contributions=streamed, aspect=Aspect("style", OF_QUERIES), effects=effects
        )
        assert weighting.group_weights == {}
        assert weighting.evidence["fell_back_because"].startswith("no ")
        assert weighting.evidence["objective"].split(":")[0] == objective


def test_requests_that_cannot_be_answered_are_refused():
    predicted, measured = _planted(np.ones(GROUPS))
    streamed = _streamed(_styled(), {"style": OF_EXAMPLES})
    with pytest.raises(UsageError, match="no objective 'labels'"):
        fit_weighting("labels", _plan())
    for objective, missing in (
        ("self_supervised", "contributions"),
        ("aspect", "contributions"),
        ("further_training", "effects"),
    ):
        with pytest.raises(UsageError, match=f"needs {missing}"):
            fit_weighting(objective, _plan())
    with pytest.raises(UsageError, match="needs aspect"):
        fit_weighting("aspect", _plan(), contributions=streamed)
    with pytest.raises(UsageError, match="2 values of 'style' for 12 queries"):
        fit_weighting("aspect", _plan(), contributions=streamed, aspect=Aspect("style", ("oil", "ink")))
    with pytest.raises(DataError, match="None of 90 training examples has an attribute 'author'"):
        fit_weighting("aspect", _plan(), contributions=streamed, aspect=Aspect("author", OF_QUERIES))
    with pytest.raises(UsageError, match="at least 3 queries each"):
        EffectSplit(predicted, measured, [0, 1], SELECT)
    with pytest.raises(UsageError, match="some in both"):
        EffectSplit(predicted, measured, [0, 1, 2], [2, 3, 4])
    with pytest.raises(DataError, match="measured ones"):
        EffectSplit(predicted[1:], measured, FIT, SELECT)
    with pytest.raises(DataError, match="not finite"):
        EffectSplit(predicted * np.inf, measured, FIT, SELECT)
    split = EffectSplit(predicted, measured, FIT, SELECT)
    with pytest.raises(DataError, match="where the plan has 2"):
        fit_effects(split, _plan("a", "b"))
    with pytest.raises(UsageError, match="A bound of"):
        fit_effects(split, _plan(), least_effective_groups=1.5)
