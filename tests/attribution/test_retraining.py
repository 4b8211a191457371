import numpy as np
import pytest
import torch
from torch import nn

from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.fidelity.evaluation import predicted_effects
from gradtrail.attribution.fidelity.removed_sets import random_halves, random_parts
from gradtrail.attribution.fidelity.training_loop import Recipe
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.scoring.joint import Member, scoring_pass
from gradtrail.attribution.yardsticks.lds import Retrained, datamodel_score
from gradtrail.attribution.yardsticks.retraining import Retraining, retrain_on_subsets
from gradtrail.errors import DataError, ModelError, UsageError
from gradtrail.nouns import Example

RATE = 0.05


def _sgd(parameters):
    return torch.optim.SGD(parameters, lr=RATE)


def _regression(make_regressor, steps=(1, 6), batch_size=12, optimiser=_sgd, **options):
    generator = torch.Generator().manual_seed(3)
    rows = [
        Example(f"row-{i}", *(torch.randn(n, generator=generator, dtype=torch.float64) for n in (3, 1)))
        for i in range(12)
    ]
    queries = [
        Example(f"query-{i}", *(torch.randn(n, generator=generator, dtype=torch.float64) for n in (3, 1)))
        for i in range(4)
    ]
    adapter = make_regressor(lambda: nn.Linear(3, 1, bias=False).double(), rows)
    return Retraining(adapter, rows, queries, Recipe(optimiser, steps, batch_size), **options)


def _ids(retraining):
    return [example.example_id for example in retraining.training]


def _stacked(examples):
    return torch.stack([e.inputs for e in examples]).numpy(), torch.stack([e.target for e in examples]).numpy()[:, 0]


def test_a_subset_is_trained_from_the_seeds_own_start_as_if_nothing_else_existed(make_regressor):
    retraining = _regression(make_regressor)
    removed = random_halves(_ids(retraining), 3)
    found = retrain_on_subsets(retraining, removed, [0, 5])
    query_inputs, query_targets = _stacked(retraining.queries)
    for place, seed in enumerate((0, 5)):
        torch.manual_seed(seed)
        start = nn.Linear(3, 1, bias=False).double().weight.detach().numpy()[0]
        for number, without in enumerate(removed):
            inputs, targets = _stacked([e for e in retraining.training if e.example_id not in without])
            hessian, pull = inputs.T @ inputs / len(inputs), inputs.T @ targets / len(inputs)
            optimum = np.linalg.solve(hessian, pull)
            for amount, steps in enumerate((1, 6)):
                weights = optimum + np.linalg.matrix_power(np.eye(3) - RATE * hessian, steps) @ (start - optimum)
                expected = 0.5 * (query_inputs @ weights - query_targets) ** 2
                np.testing.assert_allclose(found.by_seed[place, amount, number], expected, rtol=1e-9)


def test_small_batches_keep_the_order_of_all_data_and_skip_what_is_left_out(make_regressor):
    retraining = _regression(make_regressor, steps=(5,), batch_size=5)
    without = {"row-1", "row-4", "row-7", "row-8"}
    torch.manual_seed(2)
    model = nn.Linear(3, 1, bias=False).double()
    optimiser = _sgd(model.parameters())
    generator = torch.Generator().manual_seed(2)
    inputs, targets = map(torch.from_numpy, _stacked(retraining.training))
    epochs = [torch.split(torch.randperm(12, generator=generator), 5) for _ in range(2)]
    for rows in [*epochs[0], *epochs[1]][:5]:
        kept = [row for row in rows.tolist() if f"row-{row}" not in without]
        optimiser.zero_grad()
        (0.5 * (model(inputs[kept])[:, 0] - targets[kept]).square()).mean().backward()
        optimiser.step()
    query_inputs, query_targets = map(torch.from_numpy, _stacked(retraining.queries))
    expected = 0.5 * (model(query_inputs)[:, 0] - query_targets).square()
    np.testing.assert_allclose(retraining.run(2, without)[0], expected.detach().numpy(), rtol=1e-9)


def test_dropout_and_schedules_are_part_of_training_and_the_same_again_for_a_seed(make_classifier, make_examples):
    examples, queries = make_examples(20, 12), make_examples(3, 12, seed=1)
    adapter = make_classifier(
        lambda: nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 5)), examples
    )

    def made(**options):
        schedule = options.pop("schedule", None)
        return Retraining(adapter, examples, queries, Recipe(_sgd, (8,), 10, schedule), **options)

    def halving(optimiser):
        return torch.optim.lr_scheduler.StepLR(optimiser, 1, 0.5)

    before = torch.random.get_rng_state()
    first = made().run(4, {"example-001"})
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(made().run(4, {"example-001"}), first)
    assert not np.array_equal(made().run(5, {"example-001"}), first)
    assert not np.array_equal(made(mode="eval").run(4, {"example-001"}), first)
    assert not np.array_equal(made(schedule=halving).run(4, {"example-001"}), first)
    model = made().trained(4, {"example-001"})
    assert not model.training
    batch = adapter.collate(queries)
    with torch.no_grad():
        np.testing.assert_allclose(adapter.losses(model(batch.inputs), batch), first[0], rtol=1e-6)
        assert made().emitted(4, {"example-001"}) == adapter.emitted(model(batch.inputs), batch)


def test_a_killed_measurement_resumes_by_its_keys(make_regressor):
    retraining = _regression(make_regressor)
    removed = random_parts(_ids(retraining), 3, 0.25)
    kept, added = {}, {}
    whole = retrain_on_subsets(retraining, removed, [0, 1], keep=kept.__setitem__)
    assert set(kept) == {(seed, number) for seed in (0, 1) for number in range(3)}
    for key in list(kept)[2:]:
        del kept[key]
    resumed = retrain_on_subsets(retraining, removed, [0, 1], known=kept.get, keep=added.__setitem__)
    assert len(added) == 4
    assert np.array_equal(resumed.by_seed, whole.by_seed)
    assert (whole.removed, whole.steps) == (tuple(removed), (1, 6))
    cost = retraining.cost()
    assert cost.of(retraining.recipe, 6) == pytest.approx(6 * cost.of(retraining.recipe))


def test_retraining_that_cannot_be_done_is_refused(make_regressor):
    retraining = _regression(make_regressor)
    halves = random_halves(_ids(retraining), 2)
    for removed, seeds, message in (
        (halves[:1], [0, 1], "1 sets to leave out"),
        ([halves[0], halves[0]], [0, 1], "2 sets to leave out are all equal"),
        (halves, [0], r"Seeds \[0\]"),
        ([halves[0], frozenset(_ids(retraining))], [0, 1], "set 1 leaves nothing to train on"),
    ):
        with pytest.raises(UsageError, match=message):
            retrain_on_subsets(retraining, removed, seeds)
    with pytest.raises(UsageError, match="A share of 1 of 12 examples"):
        random_parts(_ids(retraining), 2, 1.0)
    wild = _regression(make_regressor, (600,), optimiser=lambda parameters: torch.optim.SGD(parameters, lr=1e3))
    with pytest.raises(ModelError, match=r"diverged: at step \d+ with seed 0"):
        wild.run(0)


def _retrained(outputs):
    """Outputs (seeds, sets, queries) as losses after one amount."""
    sets = tuple(frozenset([f"left-{number}"]) for number in range(outputs.shape[1]))
    return Retrained(sets, tuple(map(str, range(outputs.shape[2]))), (10,), -outputs[:, None])


def test_the_score_by_hand():
    outputs = np.array([[[1.0, 4, 1], [2, 3, 3], [3, 2, 2], [4, 1, 4]]])
    # Predicted are sums over what is left out: the more support left out, the lower the output.
    predicted = -np.array([[1.0, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4]])
    found = datamodel_score(predicted, _retrained(np.concatenate([outputs, outputs])))
    assert (found.value, found.ceiling) == (pytest.approx((1 - 1 + 0.8) / 3), pytest.approx(1))
    assert found.standard_error == pytest.approx(np.std([1, -1, 0.8], ddof=1) / np.sqrt(3))
    assert (found.queries, found.subsets, found.seeds, found.steps) == (3, 4, 2, 10)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_the_ceiling_is_what_the_true_prediction_reaches(noise):
    generator = np.random.default_rng(0)
    truth = generator.standard_normal((150, 40))
    retrained = _retrained(truth + noise * generator.standard_normal((6, 150, 40)))
    found = datamodel_score(-truth, retrained)
    assert found.value == pytest.approx(found.ceiling, abs=0.03)
    assert found.value < 0.99
    fewer = datamodel_score(-truth, retrained, queries=[0, 1, 2])
    assert fewer.queries == 3


def test_a_margin_ranks_what_is_nearly_certain():
    losses = np.array([[[0.1], [0.7], [3.0]]])
    outputs = _retrained(-losses).outputs(10, "margin")
    probabilities = np.exp(-losses)
    np.testing.assert_allclose(outputs, np.log(probabilities / (1 - probabilities)), rtol=1e-12)
    with pytest.raises(UsageError, match="A margin of a loss of -3"):
        _retrained(losses).outputs(10, "margin")


def test_scores_that_cannot_be_computed_are_refused():
    generator = np.random.default_rng(0)
    outputs = generator.standard_normal((2, 4, 3))
    good, retrained = generator.standard_normal((4, 3)), _retrained(outputs)
    with pytest.raises(UsageError, match="2 queries are too few"):
        datamodel_score(good, retrained, queries=[0, 1])
    with pytest.raises(UsageError, match="Nothing was measured after 3 steps"):
        datamodel_score(good, retrained, steps=3)
    with pytest.raises(DataError, match=r"shape \(3, 3\), measured ones \(4, 3\)"):
        datamodel_score(good[:3], retrained)
    with pytest.raises(DataError, match="set 2 on query 1 is not finite"):
        datamodel_score(np.where(np.arange(12).reshape(4, 3) == 7, np.nan, good), retrained)
    with pytest.raises(UsageError, match="One seed"):
        datamodel_score(good, _retrained(outputs[:1]))
    same = Retrained((frozenset("a"),) * 4, retrained.query_ids, (10,), retrained.by_seed)
    with pytest.raises(UsageError, match="1 different subsets cannot be ranked"):
        datamodel_score(good, same)
    with pytest.raises(DataError, match="measured output is not finite"):
        datamodel_score(good, _retrained(np.where(outputs == outputs[1, 2, 1], np.inf, outputs)))


def test_gradients_foretell_what_one_small_step_from_the_same_start_makes_of_subsets(make_regressor):
    retraining = _regression(make_regressor, steps=(1,), initial=_fixed_start)
    removed = random_halves(_ids(retraining), 40)
    truth = retrain_on_subsets(retraining, removed, [0, 1])
    model = _fixed_start()
    plan = plan_features(model, FeatureSettings(group_dimension=64, dtype="float64"))
    rows = compute_features(retraining.adapter, model, retraining.training, plan)
    prepared = prepare_queries(
        MethodSpec("grad_dot"), compute_features(retraining.adapter, model, retraining.queries, plan), plan
    )
    found = datamodel_score(predicted_effects(scoring_pass([Member(prepared, lambda: [rows])]), removed), truth)
    assert found.value > 0.97


def _fixed_start():
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.3)
    return model
