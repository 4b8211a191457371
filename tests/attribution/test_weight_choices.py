from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gradtrail.attribution.weighting.choices import STRENGTHS, top_k_choices
from gradtrail.attribution.weighting.effects import EffectSplit
from gradtrail.attribution.weighting.fitting import best_or_uniform
from gradtrail.attribution.weighting.learning import TopKSettings, effective_groups
from gradtrail.errors import UsageError
from gradtrail.nouns import Weighting

QUERIES, EXAMPLES, GROUPS, SETS = 9, 80, 4, 30
PLAN = SimpleNamespace(groups=[SimpleNamespace(name=f"layer-{place}") for place in range(GROUPS)])


def _values(informative=2, outstanding=4.0):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(QUERIES, EXAMPLES, GROUPS, generator=generator, dtype=torch.float64)
    for query in range(QUERIES):
        values[query, query * 5 : query * 5 + 5, informative] += outstanding
    return values


def _choices(values, **settings):
    return top_k_choices(lambda: iter(torch.split(values, 17, dim=1)), PLAN, TopKSettings(k=5, **settings))


def _weights(weighting):
    return torch.tensor(list(weighting.group_weights.values()), dtype=torch.float64)


def _split(values, truth):
    """Effects of random halves, to which the groups add up with weights that are the truth."""
    members = np.random.default_rng(0).integers(0, 2, (SETS, EXAMPLES)).astype(float)
    predicted = np.einsum("sz,qzg->sqg", members, values.numpy())
    return EffectSplit(predicted, predicted @ np.asarray([float(one) for one in truth]), range(3), range(3, 9))


def test_each_ascent_gives_weights_of_several_strengths_along_one_direction():
    found = _choices(_values())
    assert {each.evidence["k"] for each in found} == {1, 5}
    for k in (1, 5):
        own = [each for each in found if each.evidence["k"] == k]
        assert [each.evidence["strength"] for each in own] == [pytest.approx(1 - part) for part in STRENGTHS]
        spread = [effective_groups(_weights(each) / GROUPS) for each in own]
        assert spread == sorted(spread)
        for each, reached in zip(own, spread, strict=True):
            assert reached >= each.evidence["least_effective_groups"] - 1e-6
            assert _weights(each).argmax() == 2
        directions = [_weights(each).log() - _weights(each).log().mean() for each in own]
        for direction in directions:
            torch.testing.assert_close(direction / direction.norm(), directions[0] / directions[0].norm())


def test_measured_effects_choose_the_strength_that_foretells_them_best():
    values = _values()
    found = _choices(values)
    for wanted in found:
        chosen = best_or_uniform(found, PLAN, _split(values, _weights(wanted)))
        assert chosen.group_weights == wanted.group_weights
        assert chosen.evidence["spearman_learned"] == pytest.approx(1)


def test_uniform_stays_where_no_choice_foretells_effects_better():
    values = _values()
    chosen = best_or_uniform(_choices(values), PLAN, _split(values, [1, 1, 1, 1]))
    assert chosen.group_weights == {}
    assert "no better than uniform" in chosen.evidence["fell_back_because"]


def test_weights_that_are_the_same_are_one_choice():
    even = torch.ones(QUERIES, EXAMPLES, GROUPS, dtype=torch.float64) * _values()[:, :, :1]
    assert len(_choices(even)) == 1


def test_nothing_to_learn_from_leaves_the_uniform_weighting_with_the_reason():
    [none] = _choices(torch.zeros(QUERIES, EXAMPLES, GROUPS, dtype=torch.float64))
    assert none.group_weights == {}
    assert none.evidence["fell_back_because"].startswith("no contribution")
    kept = best_or_uniform([none], PLAN, _split(_values(), [1, 2, 3, 4]))
    assert kept.evidence["fell_back_because"].startswith("no contribution")


def test_too_few_queries_are_refused():
    with pytest.raises(UsageError, match="too few"):
        _choices(_values()[:2])


def test_uniform_among_the_weightings_is_no_choice():
    values = _values()
    assert best_or_uniform([Weighting()], PLAN, _split(values, [1, 2, 3, 4])).group_weights == {}
