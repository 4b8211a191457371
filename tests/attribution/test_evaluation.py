import numpy as np
import pytest
import torch
from torch import nn

from gradtrail.attribution.adapters.base import ClassificationAdapter
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.fidelity.effects import Effects
from gradtrail.attribution.fidelity.evaluation import fidelity, predicted_effects, split_queries
from gradtrail.attribution.fidelity.further_training import (
    FurtherTraining,
    Recipe,
    measure_effects,
    random_halves,
    single_examples,
)
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.numerics.correlation import cosines, ranks, spearmans
from gradtrail.attribution.scoring.joint import Member, scoring_pass
from gradtrail.errors import DataError, UsageError
from gradtrail.nouns import Example


class Classifier(ClassificationAdapter):
    input_dtype = torch.float64

    def __init__(self, examples):
        self.examples = examples

    def build_model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def training_data(self):
        return self.examples


def _examples(count, name):
    generator = torch.Generator().manual_seed(len(name))
    return [
        Example(f"{name}-{i}", torch.randn(6, generator=generator), int(torch.randint(3, (1,), generator=generator)))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def classifier():
    return Classifier(_examples(40, "row"))


@pytest.fixture(scope="module")
def queries():
    return _examples(8, "query")


def _scoring(classifier, queries, method="grad_dot"):
    model = classifier.build_model()
    plan = plan_features(model, FeatureSettings(group_dimension=4096, dtype="float64"))
    rows = compute_features(classifier, model, classifier.examples, plan)
    prepared = prepare_queries(MethodSpec(method), compute_features(classifier, model, queries, plan), plan)
    return scoring_pass([Member(prepared, lambda: [rows])])


def _effects(classifier, queries, removed, kind, rate=1e-4, steps=(1,)):
    recipe = Recipe(lambda parameters: torch.optim.SGD(parameters, lr=rate), steps, batch_size=40)
    training = FurtherTraining(classifier, classifier.build_model(), classifier.examples, queries, recipe)
    return measure_effects(training, removed, [0, 1], kind=kind)


@pytest.mark.parametrize("kind", ["subset", "loo"])
def test_one_small_step_on_all_data_is_foretold_by_the_inner_product_of_gradients(classifier, queries, kind):
    ids = [example.example_id for example in classifier.examples]
    removed = random_halves(ids, 12) if kind == "subset" else single_examples(ids)
    predicted = predicted_effects(_scoring(classifier, queries), removed)
    effects = _effects(classifier, queries, removed, kind)
    figure = fidelity(predicted, effects, 1)
    assert figure.metric == f"fidelity_{kind}"
    assert figure.queries == 8
    assert figure.spearman > 0.995
    assert figure.cosine > 0.9999
    assert figure.spearman_ceiling == pytest.approx(1)
    np.testing.assert_allclose(
        effects.mean[0], (predicted - predicted.mean(0)) * 1e-4 / 40, rtol=2e-2, atol=1e-3 * effects.mean.std()
    )
    backwards = fidelity(-predicted, effects, 1)
    assert backwards.spearman == pytest.approx(-figure.spearman)


def test_grad_cos_loses_what_the_norms_say(classifier, queries):
    removed = random_halves([example.example_id for example in classifier.examples], 12)
    effects = _effects(classifier, queries, removed, "subset")
    plain = fidelity(predicted_effects(_scoring(classifier, queries), removed), effects, 1)
    scaled = fidelity(predicted_effects(_scoring(classifier, queries, "grad_cos"), removed), effects, 1)
    assert 0 < scaled.spearman < plain.spearman
    assert scaled.spearman_error > plain.spearman_error


def test_predictions_without_any_difference_count_as_nothing(classifier, queries):
    removed = random_halves([example.example_id for example in classifier.examples], 4)
    effects = _effects(classifier, queries, removed, "subset")
    figure = fidelity(np.zeros((4, 8)), effects, 1)
    assert (figure.spearman, figure.cosine) == (0, 0)


def test_requests_that_cannot_be_answered_are_refused(classifier, queries):
    removed = random_halves([example.example_id for example in classifier.examples], 4)
    effects = _effects(classifier, queries, removed, "subset")
    with pytest.raises(UsageError, match="2 queries are too few"):
        fidelity(np.zeros((4, 8)), effects, 1, [0, 1])
    with pytest.raises(UsageError, match="Nothing was measured after 7 steps"):
        fidelity(np.zeros((4, 8)), effects, 7)
    with pytest.raises(DataError, match=r"shape \(3, 8\), measured ones \(4, 8\)"):
        fidelity(np.zeros((3, 8)), effects, 1)
    with pytest.raises(DataError, match="1 left-out examples have no score, for example elsewhere"):
        predicted_effects(_scoring(classifier, queries), [frozenset(["row-1", "elsewhere"]), frozenset(["row-2"])])
    with pytest.raises(UsageError, match="5 queries cannot be split into 2 parts"):
        split_queries(5, 2)


def test_query_sets_are_disjoint_whole_and_the_same_again():
    parts = split_queries(17, 3)
    assert sorted(position for part in parts for position in part) == list(range(17))
    assert {len(part) for part in parts} == {5, 6}
    assert split_queries(17, 3) == parts
    assert split_queries(17, 3, seed=1) != parts


def test_figures_and_ceilings_speak_about_the_chosen_queries_alone():
    generator = np.random.default_rng(0)
    signal = generator.standard_normal((30, 6))
    noisy = np.concatenate([np.zeros(3), np.full(3, 20.0)])
    by_seed = signal + noisy * generator.standard_normal((4, 1, 30, 6))
    effects = Effects("subset", (frozenset("a"),) * 30, tuple("abcdef"), (1,), by_seed)
    clean, rough = fidelity(signal, effects, 1, [0, 1, 2]), fidelity(signal, effects, 1, [3, 4, 5])
    assert (clean.spearman, clean.spearman_ceiling) == pytest.approx((1, 1))
    assert rough.spearman < 0.6
    assert rough.spearman_ceiling < 0.8


def test_rank_correlation_shares_ranks_between_equal_values():
    left = np.array([[1.0, 1.0], [2.0, 2.0], [2.0, 3.0], [5.0, 4.0]])
    right = np.array([[1.0, 4.0], [3.0, 3.0], [2.0, 2.0], [4.0, 1.0]])
    assert spearmans(left, right) == pytest.approx([4.5 / np.sqrt(4.5 * 5), -1])
    assert cosines(left * 3 + 1, left) == pytest.approx([1, 1])


@pytest.mark.parametrize("shape", [(40, 7), (1, 3), (5, 1), (0, 2), (4, 0)])
def test_a_rank_is_the_mean_place_among_equal_values(shape):
    values = np.random.default_rng(0).integers(0, 6, shape).astype(float)
    below, equal = (compare(values[None], values[:, None]).sum(1) for compare in (np.less, np.equal))
    np.testing.assert_array_equal(ranks(values), below + (equal + 1) / 2)
