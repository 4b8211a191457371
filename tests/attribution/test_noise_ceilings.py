"""When a noise ceiling backs a figure, and how much training would make it do so."""

import numpy as np
import pytest

from gradtrail.attribution.fidelity.effects import Effects
from gradtrail.attribution.fidelity.evaluation import fidelity
from gradtrail.attribution.fidelity.noise_ceilings import split_half_ceilings

SETS, QUERIES = 24, 12


def effects_of(by_seed):
    sets = tuple(frozenset({f"row-{number}"}) for number in range(by_seed.shape[2]))
    return Effects("subset", sets, tuple(map(str, range(by_seed.shape[3]))), (10,), by_seed)


def runs(seeds, signal, seed=0):
    """Effects with a part that all seeds share, `signal` times as large as what each has of its own."""
    random = np.random.default_rng(seed)
    shared = random.normal(size=(SETS, QUERIES))
    return signal * shared + random.normal(size=(seeds, SETS, QUERIES)), shared


def test_the_ceiling_of_noise_does_not_stand_and_that_of_a_signal_does():
    # The error must be right: of noise, hardly one in forty should stand; chance fixed by the seeds.
    stood = [split_half_ceilings(runs(4, 0.0, seed)[0]).stands for seed in range(40)]
    assert sum(stood) <= 4
    assert all(split_half_ceilings(runs(4, 1.0, seed)[0]).stands for seed in range(20))


def test_the_error_of_the_agreement_is_its_spread_over_draws_of_the_sets():
    drawn = [split_half_ceilings(runs(4, 0.4, seed)[0]) for seed in range(80)]
    spread = np.std([each.agreement for each in drawn])
    assert np.mean([each.agreement_error for each in drawn]) == pytest.approx(spread, rel=0.25)


def test_the_seeds_that_are_said_to_do_mostly_do():
    drawn = [split_half_ceilings(runs(2, 0.3, seed)[0]) for seed in range(30)]
    said = [each.seeds_that_would_do for each in drawn if not each.stands and each.seeds_that_would_do]
    enough = int(np.median(said))
    assert 2 < enough < 40
    stood = [split_half_ceilings(runs(enough, 0.3, 1000 + seed)[0]).stands for seed in range(10)]
    assert sum(stood) >= 7


def test_two_sets_or_three_say_nothing_about_the_error():
    assert not split_half_ceilings(runs(4, 5.0)[0][:, :3]).stands


@pytest.mark.parametrize("far", [0.0, 3.0])
def test_a_figure_above_its_ceiling_could_not_be_measured(far):
    by_seed, shared = runs(2, 0.8)
    effects = effects_of(by_seed[:, None])
    # With what the seeds have of their own, a prediction agrees better than any that knows the future can.
    predicted = shared + far * by_seed.mean(0)
    figure = fidelity(predicted, effects, 10)
    assert figure.could_be_measured == (far == 0)
