from itertools import chain, combinations

import numpy as np
import pytest

from gradtrail.attribution.numerics import nonnegative
from gradtrail.attribution.numerics.nonnegative import nonnegative_least_squares
from gradtrail.errors import DataError


def _by_every_support(matrix, target):
    """The least of the ordinary least squares solutions over every set of columns that are nowhere negative."""
    columns = range(matrix.shape[1])
    best, least = np.zeros(len(columns)), np.linalg.norm(target)
    for support in map(list, chain.from_iterable(combinations(columns, size) for size in range(1, len(columns) + 1))):
        solution = np.linalg.lstsq(matrix[:, support], target, rcond=None)[0]
        residual = np.linalg.norm(matrix[:, support] @ solution - target)
        if (solution >= 0).all() and residual < least:
            best, least = np.zeros(len(columns)), residual
            best[support] = solution
    return best, least


@pytest.mark.parametrize("seed", range(20))
def test_it_finds_what_trying_every_support_finds(seed):
    generator = np.random.default_rng(seed)
    rows, columns = int(generator.integers(8, 60)), int(generator.integers(1, 9))
    matrix = generator.standard_normal((rows, columns)) * 10.0 ** generator.uniform(-2, 2, columns)
    target = matrix @ np.maximum(generator.standard_normal(columns), 0) + generator.standard_normal(rows)
    found, (expected, residual) = nonnegative_least_squares(matrix, target), _by_every_support(matrix, target)
    assert np.linalg.norm(matrix @ found - target) == pytest.approx(residual, rel=1e-12)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * abs(expected).max())


def test_the_conditions_of_a_minimum_hold_at_zero_and_above():
    generator = np.random.default_rng(1)
    matrix, target = generator.standard_normal((40, 12)), generator.standard_normal(40)
    found = nonnegative_least_squares(matrix, target)
    descent = matrix.T @ (target - matrix @ found)
    assert (found >= 0).all()
    assert (found == 0).any()
    np.testing.assert_allclose(descent[found > 0], 0, atol=1e-12)
    assert (descent[found == 0] <= 0).all()


def test_the_last_digits_are_those_of_least_squares_over_the_unknowns_above_zero():
    generator = np.random.default_rng(2)
    matrix, target = generator.standard_normal((40, 12)), generator.standard_normal(40)
    found = nonnegative_least_squares(matrix, target)
    assert found[found > 0].tolist() == np.linalg.lstsq(matrix[:, found > 0], target, rcond=None)[0].tolist()


def test_zeros_repeated_columns_and_targets_that_point_away_have_answers():
    column = np.arange(1.0, 6)[:, None]
    assert nonnegative_least_squares(column, -column[:, 0]).tolist() == [0]
    assert nonnegative_least_squares(np.zeros((4, 3)), np.ones(4)).tolist() == [0, 0, 0]
    assert nonnegative_least_squares(np.zeros((4, 0)), np.ones(4)).tolist() == []
    assert nonnegative_least_squares(np.zeros((0, 2)), np.ones(0)).tolist() == [0, 0]
    twice = nonnegative_least_squares(np.hstack([column, column]), 3 * column[:, 0])
    assert twice.sum() == pytest.approx(3)


def test_values_that_are_not_finite_and_shapes_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="not finite"):
        nonnegative_least_squares(np.full((3, 2), np.nan), np.ones(3))
    with pytest.raises(DataError, match="for a target of shape"):
        nonnegative_least_squares(np.ones((3, 2)), np.ones(4))


def test_a_problem_that_does_not_settle_is_named(monkeypatch):
    generator = np.random.default_rng(1)
    monkeypatch.setattr(nonnegative, "_MOST_TURNS", 1)
    with pytest.raises(DataError, match="with 12 unknowns ≥ 0 did not settle"):
        nonnegative_least_squares(generator.standard_normal((40, 12)), generator.standard_normal(40))
