from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.spectrum import Spectrum
from gradtrail.attribution.curvature.vectors import observed_vectors
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.fidelity.evaluation import predicted_effects
from gradtrail.attribution.fidelity.further_training import random_halves
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.scoring.contribution_blocks import contributions, group_effects, removed_sums
from gradtrail.attribution.scoring.joint import Member, scoring_pass
from gradtrail.attribution.weighting.horizons import fit_horizon
from gradtrail.errors import DataError, StoreError, UsageError

DIMENSIONS = (6, 4, 5)
EXAMPLES, QUERIES, RATE = 80, 12, 0.05
FIT, SELECT, REPORT = range(4), range(4, 8), range(8, 12)
AMOUNTS = (4, 40, 400)


def _plan():
    ends = np.cumsum(DIMENSIONS).tolist()
    groups = [SimpleNamespace(name=f"layer-{place}", dimension=size) for place, size in enumerate(DIMENSIONS)]
    slices = [slice(end - size, end) for end, size in zip(ends, DIMENSIONS, strict=True)]
    return SimpleNamespace(groups=groups, slices=slices, dimension=sum(DIMENSIONS), dtype=torch.float64)


def _rows(count, seed, prefix):
    """Gradients whose directions differ a hundredfold in curvature."""
    plan = _plan()
    spread = torch.logspace(0.5, -1.5, plan.dimension, dtype=torch.float64)[
        torch.randperm(plan.dimension, generator=torch.Generator().manual_seed(9))
    ]
    vectors = spread * torch.randn(
        count, plan.dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    squares = torch.stack([vectors[:, columns].square().sum(1) for columns in plan.slices], dim=1)
    ids = [f"{prefix}-{place:02d}" for place in range(count)]
    return GradientBatch(ids, vectors, torch.zeros(count, dtype=torch.float64), squares)


TRAINING, MEASURED = _rows(EXAMPLES, 0, "row"), _rows(QUERIES, 1, "query")
LEFT_OUT = random_halves(TRAINING.example_ids, 24)


@pytest.fixture(scope="module")
def spectrum():
    return Spectrum.fit(observed_vectors([TRAINING], _plan()))


def _stream():
    for part in torch.split(torch.arange(EXAMPLES), 30):
        yield GradientBatch(
            [TRAINING.example_ids[place] for place in part.tolist()],
            TRAINING.vectors[part],
            TRAINING.losses[part],
            TRAINING.squared_norms[part],
        )


def _descended(steps, group_scale=(1.0, 1.0, 1.0)):
    """Effects of steps of gradient descent, taken one by one, on the quadratic ½ δᵀFδ − δᵀb(S): (sets, queries).

    b(S) is what leaving S out takes from the gradient, and F the mean of φφᵀ; each query sees its own loss move by
    φ(q)ᵀδ, in which the groups count as `group_scale` says.
    """
    plan = _plan()
    curvature = TRAINING.vectors.T @ TRAINING.vectors / EXAMPLES
    scale = torch.cat([torch.full((size,), value) for size, value in zip(DIMENSIONS, group_scale, strict=True)])
    pull = torch.stack(
        [
            TRAINING.vectors[[place for place, name in enumerate(TRAINING.example_ids) if name in without]].sum(0)
            for without in LEFT_OUT
        ]
    )
    moved = torch.zeros(len(LEFT_OUT), plan.dimension, dtype=torch.float64)
    for _ in range(steps):
        moved = moved - RATE * (moved @ curvature - pull / EXAMPLES)
    return (moved @ (scale * MEASURED.vectors).T).numpy()


def _horizons(spectrum):
    plan = _plan()

    def predict(horizon):
        queries = prepare_queries(MethodSpec("horizon", horizon=horizon), MEASURED, plan, spectrum=spectrum)
        return group_effects(queries, removed_sums(_stream, LEFT_OUT, plan, queries), plan)

    return predict


def _dampings(spectrum):
    plan = _plan()

    def predict(damping):
        queries = prepare_queries(
            MethodSpec("influence_global", damping=Damping(0.0, damping)), MEASURED, plan, spectrum=spectrum
        )
        return group_effects(queries, removed_sums(_stream, LEFT_OUT, plan, queries), plan)

    return predict


def test_the_fitted_horizon_is_learning_rate_times_steps(spectrum):
    grid = [RATE * amount * factor for amount in AMOUNTS for factor in (0.3, 1.0, 3.0)]
    measured = {amount: _descended(amount) for amount in AMOUNTS}
    fitted = fit_horizon(_horizons(spectrum), grid, measured, _plan(), FIT, SELECT)
    for amount in AMOUNTS:
        assert fitted[amount].uniform > 0.97
        assert fitted[amount].by_point[RATE * amount] == max(fitted[amount].by_point.values())
        assert fitted[amount].point / (RATE * amount) == pytest.approx(1, rel=0.01)
        assert set(fitted[amount].by_point) == set(grid)


def test_the_fitted_damping_is_near_the_inverse_of_learning_rate_times_steps(spectrum):
    grid = np.geomspace(1e-3, 100, 16).tolist()
    measured = {amount: _descended(amount) for amount in AMOUNTS}
    fitted = fit_horizon(_dampings(spectrum), grid, measured, _plan(), FIT, SELECT)
    found = [fitted[amount].point * RATE * amount for amount in AMOUNTS]
    assert all(0.2 < product < 5 for product in found)
    assert fitted[4].point > fitted[40].point > fitted[400].point


def test_horizon_and_weights_are_found_together(spectrum):
    measured = {40: _descended(40, group_scale=(0.2, 2.0, 0.8))}
    grid = [RATE * 40 * factor for factor in (0.1, 1.0, 10.0)]
    fitted = fit_horizon(_horizons(spectrum), grid, measured, _plan(), FIT, SELECT)[40]
    assert fitted.point == pytest.approx(RATE * 40)
    weights = np.array(list(fitted.weighting.group_weights.values()))
    np.testing.assert_allclose(weights, [0.2, 2.0, 0.8], atol=0.12)
    assert fitted.weighted > fitted.uniform + 0.02


def test_uniform_stays_where_weights_do_not_help(spectrum):
    exact = {1: _horizons(spectrum)(0.7).sum(2)}
    fitted = fit_horizon(_horizons(spectrum), [0.7], exact, _plan(), FIT, SELECT)[1]
    assert fitted.weighting.group_weights == {}
    assert "no better than uniform" in fitted.weighting.evidence["fell_back_because"]
    assert fitted.weighted == fitted.uniform == pytest.approx(1)


def test_each_point_is_predicted_once_for_all_amounts(spectrum):
    asked = []

    def predict(point):
        asked.append(point)
        return _horizons(spectrum)(point)

    measured = {amount: _descended(amount) for amount in AMOUNTS}
    fit_horizon(predict, [0.5, 2.0], measured, _plan(), FIT, SELECT)
    assert asked == [0.5, 2.0]


@pytest.mark.parametrize("method", ["grad_dot", "grad_cos"])
def test_effects_of_groups_add_up_to_the_predicted_effects(method):
    plan = _plan()
    queries = prepare_queries(MethodSpec(method), MEASURED, plan)
    effects = group_effects(queries, removed_sums(_stream, LEFT_OUT, plan, queries), plan)
    np.testing.assert_allclose(
        effects.sum(2), predicted_effects(scoring_pass([Member(queries, _stream)]), LEFT_OUT), rtol=1e-10
    )
    streamed = torch.cat([block.values for block in contributions(queries, _stream, plan)()], dim=1)
    members = np.array([[name in without for name in TRAINING.example_ids] for without in LEFT_OUT])
    np.testing.assert_allclose(effects, np.einsum("sz,qzg->sqg", members, streamed.numpy()), rtol=1e-9, atol=1e-12)


def test_requests_that_cannot_be_answered_are_refused():
    plan = _plan()
    queries = prepare_queries(MethodSpec("grad_dot"), MEASURED, plan)
    with pytest.raises(DataError, match="not in the index, for example stranger"):
        removed_sums(_stream, [frozenset(["stranger"])], plan, queries)
    with pytest.raises(StoreError, match="Index rows have 3 columns"):
        group_effects(queries, torch.zeros(2, 3, dtype=torch.float64), plan)
    with pytest.raises(UsageError, match="0 points for 0 amounts"):
        fit_horizon(lambda _: np.zeros((2, 6, 3)), [], {}, plan, FIT, SELECT)
