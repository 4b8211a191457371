import threading

import numpy as np
import pytest
import torch
from torch import nn

from gradtrail.attribution.adapters.base import ClassificationAdapter, RegressionAdapter
from gradtrail.attribution.fidelity.effects import Effects
from gradtrail.attribution.fidelity.evaluation import fidelity
from gradtrail.attribution.fidelity.further_training import (
    FurtherTraining,
    Recipe,
    measure_effects,
    random_halves,
    single_examples,
)
from gradtrail.attribution.fidelity.stationarity import Stationarity, measure_stationarity
from gradtrail.errors import DataError, ModelError, UsageError
from gradtrail.nouns import Example

RATE = 0.05


class LinearRegression(RegressionAdapter):
    input_dtype = torch.float64

    def __init__(self, examples):
        self.examples = examples

    def build_model(self):
        return nn.Linear(3, 1, bias=False).double()

    def training_data(self):
        return self.examples


class Classifier(ClassificationAdapter):
    def __init__(self, examples):
        self.examples = examples

    def build_model(self):
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 2))

    def training_data(self):
        return self.examples


def _examples(count, name, labels=False):
    generator = torch.Generator().manual_seed(len(name))
    return [
        Example(
            f"{name}-{i}",
            torch.randn(3, generator=generator, dtype=torch.float64),
            int(torch.randint(2, (1,), generator=generator))
            if labels
            else torch.randn(1, generator=generator, dtype=torch.float64),
        )
        for i in range(count)
    ]


def _sgd(parameters, rate=RATE):
    return torch.optim.SGD(parameters, lr=rate)


def _regression(steps=(1, 7, 40), optimiser=_sgd, batch_size=12):
    adapter = LinearRegression(_examples(12, "row"))
    torch.manual_seed(0)
    return FurtherTraining(
        adapter, adapter.build_model(), adapter.examples, _examples(4, "query"), Recipe(optimiser, steps, batch_size)
    )


def _stacked(examples):
    return torch.stack([e.inputs for e in examples]).numpy(), torch.stack([e.target for e in examples]).numpy()[:, 0]


def _closed_form(training, without, steps):
    """Gradient descent on a quadratic: θ_t = θ* + (I − ηH)^t (θ_0 − θ*), with the nominal denominator in H."""
    inputs, targets = _stacked([e for e in training.training if e.example_id not in without])
    hessian = inputs.T @ inputs / len(training.training)
    optimum = np.linalg.solve(hessian, inputs.T @ targets / len(training.training))
    start = training.model.weight.detach().numpy()[0]
    weights = optimum + np.linalg.matrix_power(np.eye(3) - RATE * hessian, steps) @ (start - optimum)
    query_inputs, query_targets = _stacked(training.queries)
    return 0.5 * (query_inputs @ weights - query_targets) ** 2


def test_effects_on_a_quadratic_are_those_of_the_closed_form():
    training = _regression()
    ids = [example.example_id for example in training.training]
    for kind, removed in (("subset", random_halves(ids, 5)), ("loo", single_examples(ids))):
        effects = measure_effects(training, removed, [0, 1], kind=kind)
        for amount, steps in enumerate(effects.steps):
            full = _closed_form(training, set(), steps)
            expected = np.array([_closed_form(training, without, steps) - full for without in removed])
            np.testing.assert_allclose(effects.by_seed[0, amount], expected, rtol=1e-9, atol=1e-14)
            np.testing.assert_allclose(effects.mean[amount], expected - expected.mean(0), rtol=1e-8, atol=1e-14)
            assert (effects.ceiling(steps).spearman, effects.ceiling(steps).cosine) == pytest.approx((1, 1))
        assert effects.standard_error.max() < 1e-12


def test_a_left_out_example_keeps_its_place_in_the_batch_and_its_step():
    def adam(parameters):
        return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)

    training = _regression(steps=(9,), optimiser=adam, batch_size=5)
    without = {"row-1", "row-4", "row-7"}
    model = training.adapter.build_model()
    model.load_state_dict(training.model.state_dict())
    optimiser = adam(model.parameters())
    generator = torch.Generator().manual_seed(3)
    inputs, targets = map(torch.from_numpy, _stacked(training.training))
    kept = torch.tensor([example.example_id not in without for example in training.training])
    for _ in range(3):
        for rows in torch.split(torch.randperm(12, generator=generator), 5):
            optimiser.zero_grad()
            losses = 0.5 * (model(inputs[rows])[:, 0] - targets[rows]).square() * kept[rows]
            (losses.sum() / len(rows)).backward()
            optimiser.step()
    query_inputs, query_targets = map(torch.from_numpy, _stacked(training.queries))
    expected = 0.5 * (model(query_inputs)[:, 0] - query_targets).square()
    np.testing.assert_allclose(training.run(3, without)[0], expected.detach().numpy(), rtol=1e-9)


def test_any_optimiser_of_torch_trains_further_even_one_with_a_closure():
    training = _regression(steps=(3,), optimiser=lambda parameters: torch.optim.LBFGS(parameters, max_iter=30))
    optimum = np.linalg.lstsq(*_stacked(training.training), rcond=None)[0]
    inputs, targets = _stacked(training.queries)
    np.testing.assert_allclose(training.run(0)[0], 0.5 * (inputs @ optimum - targets) ** 2, rtol=1e-4)


def test_runs_are_deterministic_without_dropout_and_leave_the_model_as_it_was():
    adapter = Classifier(_examples(20, "row", labels=True))
    model = adapter.build_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = FurtherTraining(adapter, model, adapter.examples, _examples(3, "query", labels=True), Recipe(_sgd, (4,)))
    first, again = training.run(5), training.run(5)
    assert np.array_equal(first, again)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    small = FurtherTraining(adapter, model, adapter.examples, training.queries, Recipe(_sgd, (4,), batch_size=6))
    assert not np.array_equal(small.run(0), small.run(1))


def test_losses_by_amount_come_from_one_run():
    several = _regression(steps=(2, 5, 11), batch_size=4).run(0)
    for amount, steps in enumerate((2, 5, 11)):
        assert np.array_equal(several[amount], _regression(steps=(steps,), batch_size=4).run(0)[0])


def test_a_killed_measurement_resumes_and_bad_kept_runs_are_refused():
    training = _regression(steps=(2,), batch_size=4)
    removed = random_halves([example.example_id for example in training.training], 3)
    kept = {}
    whole = measure_effects(training, removed, [0, 1], kind="subset", keep=kept.__setitem__)
    assert set(kept) == {(seed, number) for seed in (0, 1) for number in (None, 0, 1, 2)}
    for key in list(kept)[3:]:
        del kept[key]
    added = {}
    resumed = measure_effects(training, removed, [0, 1], kind="subset", known=kept.get, keep=added.__setitem__)
    assert len(added) == 5
    assert np.array_equal(resumed.by_seed, whole.by_seed)
    with pytest.raises(DataError, match=r"shape \(2, 4\), where \(1, 4\)"):
        measure_effects(training, removed, [0, 1], kind="subset", known=lambda _: np.zeros((2, 4)))


def test_a_diverging_optimiser_is_named():
    training = _regression(steps=(500,), optimiser=lambda parameters: _sgd(parameters, 1e3))
    with pytest.raises(
        ModelError, match=r"diverged: at step \d+ with seed 0 the training loss is not finite"
    ) as caught:
        training.run(0)
    assert "smaller learning rate" in caught.value.remedy


def test_requests_that_cannot_be_answered_are_refused():
    training = _regression()
    halves = random_halves([example.example_id for example in training.training], 2)
    for removed, seeds, kind, message in (
        (halves[:1], [0, 1], "subset", "1 sets to leave out"),
        (halves, [0], "subset", r"Seeds \[0\]"),
        (halves, [0, 0], "subset", r"Seeds \[0, 0\]"),
        (halves, [0, 1], "loo", "effects of kind loo"),
        (single_examples(["row-0", "row-1"]), [0, 1], "subset", "effects of kind subset"),
        ([halves[0], frozenset()], [0, 1], "subset", "or an empty one"),
    ):
        with pytest.raises(UsageError, match=message):
            measure_effects(training, removed, seeds, kind=kind)
    for steps, size in (((), 4), ((0,), 4), ((5, 2), 4), ((5,), 0)):
        with pytest.raises(UsageError, match="Training for"):
            Recipe(_sgd, steps, size)
    with pytest.raises(UsageError, match="no halves"):
        random_halves(["a"], 1)
    recipe, model = training.recipe, training.model
    with pytest.raises(UsageError, match="without a query"):
        FurtherTraining(training.adapter, model, training.training, [], recipe)
    with pytest.raises(DataError, match="without a training example"):
        FurtherTraining(training.adapter, model, [], training.queries, recipe)
    frozen = training.adapter.build_model().requires_grad_(False)
    with pytest.raises(ModelError, match="No parameter"):
        FurtherTraining(training.adapter, frozen, training.training, training.queries, recipe)


def test_halves_are_halves_and_the_same_however_many_are_asked_for():
    ids = [f"row-{i}" for i in range(11)]
    halves = random_halves(ids, 6, seed=2)
    assert {len(half) for half in halves} == {6}
    assert random_halves(ids, 3, seed=2) == halves[:3]
    assert len(set(halves)) == 6
    assert single_examples(ids, 4) == single_examples(ids, 4)
    assert len(set(single_examples(ids, 4))) == 4


@pytest.mark.parametrize(
    ("seeds", "noise"), [(6, 0.3), (6, 1.0), (6, 3.0), (2, 1.0), (3, 0.3), (3, 1.0), (3, 2.0), (5, 2.0), (7, 2.0)]
)
def test_the_ceiling_is_the_correlation_of_noiseless_effects_with_the_measured_mean(seeds, noise):
    generator = np.random.default_rng(0)
    sets, queries = 200, 40
    signal = generator.standard_normal((sets, queries))
    by_seed = signal + noise * generator.standard_normal((seeds, 1, sets, queries))
    effects = Effects("subset", (frozenset("a"),) * sets, tuple(map(str, range(queries))), (1,), by_seed)
    reached = np.mean([np.corrcoef(signal[:, q], by_seed.mean(0)[0, :, q])[0, 1] for q in range(queries)])
    ranked, angle = effects.ceiling(1).spearman, effects.ceiling(1).cosine
    assert angle == pytest.approx(reached, abs=0.01)
    assert ranked == pytest.approx(reached, abs=0.03)
    noiseless = Effects("subset", effects.removed, effects.query_ids, (1,), by_seed - signal)
    assert max(noiseless.ceiling(1).spearman, noiseless.ceiling(1).cosine) < 0.2


def test_the_reliability_of_two_halves_of_an_even_number_of_seeds_is_doubled():
    by_seed = np.random.default_rng(1).standard_normal((2, 1, 9, 4)) + np.arange(9)[:, None]
    effects = Effects("subset", (frozenset("a"),) * 9, tuple("wxyz"), (1,), by_seed)
    agreed = np.mean([np.corrcoef(by_seed[0, 0, :, q], by_seed[1, 0, :, q])[0, 1] for q in range(4)])
    assert effects.ceiling(1).cosine == pytest.approx(np.sqrt(2 * agreed / (1 + agreed)), rel=1e-12)


def test_the_cost_of_a_run_is_timed_and_grows_with_its_steps():
    training = _regression()
    cost = training.cost()
    assert cost.step > 0
    assert cost.measurement > 0
    assert cost.of(training.recipe) == pytest.approx(cost.start + 40 * cost.step + 3 * cost.measurement)


def test_several_workers_find_what_one_finds_and_keep_it_on_the_callers_thread():
    training = _regression(steps=(2, 9), batch_size=4)
    removed = random_halves([example.example_id for example in training.training], 5)
    alone = measure_effects(training, removed, [0, 1, 2], kind="subset")
    kept = {}

    def keep(key, losses):
        assert threading.current_thread() is threading.main_thread()
        kept[key] = losses

    together = measure_effects(training, removed, [0, 1, 2], kind="subset", workers=3, keep=keep)
    assert np.array_equal(together.by_seed, alone.by_seed)
    assert list(kept) == [(seed, number) for seed in (0, 1, 2) for number in (None, 0, 1, 2, 3, 4)]
    with pytest.raises(UsageError, match="0 workers"):
        measure_effects(training, removed, [0, 1], kind="subset", workers=0)
    wild = _regression(steps=(600,), optimiser=lambda parameters: _sgd(parameters, 1e3))
    threads = torch.get_num_threads()
    with pytest.raises(ModelError, match="diverged"):
        measure_effects(wild, removed, [0, 1], kind="subset", workers=2)
    assert torch.get_num_threads() == threads


def test_single_examples_left_out_at_random_are_foretold_by_their_gradients_at_the_start():
    training = _regression(steps=(1,), optimiser=lambda parameters: _sgd(parameters, 1e-5))
    ids = [example.example_id for example in training.training]
    removed = single_examples(ids, 7, seed=1)
    effects = measure_effects(training, removed, [0, 1], kind="loo")
    weights = training.model.weight.detach().numpy()[0]
    inputs, targets = _stacked(training.training)
    asked, wanted = _stacked(training.queries)
    gradients = (inputs @ weights - targets)[:, None] * inputs
    towards = (asked @ weights - wanted)[:, None] * asked
    places = [ids.index(*without) for without in removed]
    predicted = gradients[places] @ towards.T
    found = fidelity(predicted, effects, 1)
    assert found.metric == "fidelity_loo"
    assert (found.spearman, found.cosine) == pytest.approx((1, 1), abs=1e-3)


def test_at_a_minimum_nothing_is_warned_and_the_mean_gradient_is_nothing():
    training = _regression()
    inputs, targets = _stacked(training.training)
    optimum = np.linalg.lstsq(inputs, targets, rcond=None)[0]
    with torch.no_grad():
        training.model.weight[0] = torch.from_numpy(optimum)
    found = measure_stationarity(training)
    assert found.gradient_ratio < 1e-12
    assert found.loss_before == pytest.approx(0.5 * ((inputs @ optimum - targets) ** 2).mean())
    assert found.loss_change == pytest.approx(0, abs=1e-9)
    assert found.warnings == ()


def test_a_model_that_still_learns_is_warned_about_in_words():
    training = _regression()
    with torch.no_grad():
        training.model.weight.fill_(5.0)
    found = measure_stationarity(training)
    weights = np.full(3, 5.0)
    inputs, targets = _stacked(training.training)
    gradients = (inputs @ weights - targets)[:, None] * inputs
    typical = np.sqrt((np.linalg.norm(gradients, axis=1) ** 2).mean())
    assert found.gradient_ratio == pytest.approx(np.linalg.norm(gradients.mean(0)) / typical)
    assert found.loss_change < -0.5
    [warning] = found.warnings
    assert "not at a minimum: 40 steps of further training on all data lower its mean training loss by" in warning


def test_a_learning_rate_that_raises_the_training_loss_is_warned_about():
    training = _regression(steps=(4,), optimiser=lambda parameters: _sgd(parameters, 20.0))
    [warning] = measure_stationarity(training).warnings
    assert "its learning rate is too large" in warning
    assert Stationarity(0.0, 0.0, 0.0, 5).warnings == ()
    assert "too large" in Stationarity(0.0, 1.0, float("nan"), 5).warnings[0]
    assert "too large" in Stationarity(0.0, 1.0, float("inf"), 5).warnings[0]
