import numpy as np
import pytest
import torch
from torch import nn

from gradtrail.attribution.fidelity.training_loop import Recipe
from gradtrail.attribution.scoring.passes import score_pass
from gradtrail.attribution.yardsticks.baselines import random_pass
from gradtrail.attribution.yardsticks.brittleness import brittleness
from gradtrail.attribution.yardsticks.detection import duplicate_recall, mislabel_auc
from gradtrail.attribution.yardsticks.retraining import Retraining
from gradtrail.errors import DataError, UsageError
from gradtrail.nouns import Example


def test_the_area_under_the_curve_by_hand():
    scores = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}
    assert mislabel_auc(scores, {"a", "b"}) == 1
    assert mislabel_auc(scores, ["c", "d"]) == 0
    assert mislabel_auc(scores, {"a", "d"}) == 0.5
    # Of the pairs (wrong, right) = (b, a), (b, c), (b, d) two are in order.
    assert mislabel_auc(scores, {"b"}) == pytest.approx(2 / 3)
    assert mislabel_auc(dict.fromkeys("abcd", 7.0), {"b"}) == 0.5


def test_the_area_is_the_share_of_pairs_in_order_with_ties_by_half():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 9, 200).astype(float)
    wrong = generator.random(200) < 0.2
    gaps = scores[wrong][:, None] - scores[~wrong][None]
    found = mislabel_auc(
        {f"row-{i}": score for i, score in enumerate(scores)}, {f"row-{i}" for i in np.flatnonzero(wrong)}
    )
    assert found == pytest.approx(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def test_labels_that_say_nothing_are_refused():
    scores = {"a": 4.0, "b": 3.0}
    for wrong, error, message in (
        (set(), UsageError, "0 of 2 labels are wrong"),
        ({"a", "b"}, UsageError, "2 of 2 labels are wrong"),
        ({"a", "z"}, DataError, "1 mislabelled examples have no score, for example z"),
    ):
        with pytest.raises(error, match=message):
            mislabel_auc(scores, wrong)
    with pytest.raises(DataError, match="score of example b is not finite"):
        mislabel_auc({"a": 1.0, "b": float("nan")}, {"a"})


def test_recall_of_duplicates_by_hand():
    tops = [["a", "b", "c"], ["d", "e", "f"], ["g", "h", "i"]]
    planted = [{"a", "c"}, {"e"}, ["x", "y", "z", "i"]]
    first, third = duplicate_recall(tops, planted, 1), duplicate_recall(tops, planted, 3)
    assert (first.value, first.queries) == (pytest.approx(1 / 3), 3)
    assert third.value == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert third.standard_error == pytest.approx(np.std([1, 1, 1 / 3], ddof=1) / np.sqrt(3))


def test_tops_that_cannot_be_judged_are_refused():
    tops, planted = [["a"], ["b"], ["c"]], [{"a"}, {"b"}, {"c"}]
    for given, wanted, k, error, message in (
        (tops[:2], planted[:2], 1, UsageError, "2 queries are too few"),
        (tops, planted, 0, UsageError, "The first 0 examples"),
        (tops, planted, 2, DataError, "1 ranked examples, but k is 2"),
        (tops, planted[:2], 1, DataError, "Duplicates of 2 queries for the tops of 3"),
        (tops, [{"a"}, set(), {"c"}], 1, UsageError, "Query 1 has no duplicates"),
    ):
        with pytest.raises(error, match=message):
            duplicate_recall(given, wanted, k)


def test_flips_by_hand_and_one_retraining_for_what_is_removed_alike():
    asked = []

    def retrain(seed, removed):
        asked.append((seed, removed))
        return ["no" if "a" in removed else "yes", "yes", "no" if seed and "c" in removed else "yes"]

    found = brittleness([["a", "x"], ["a", "y"], ["c", "z"]], 1, retrain, [0, 1])
    assert found.flips == (1, 0, 0.5)
    assert found.flip_rate == pytest.approx(0.5)
    assert found.standard_error == pytest.approx(0.5 / np.sqrt(3))
    assert asked == [(seed, frozenset(removed)) for seed in (0, 1) for removed in ("", "a", "c")]
    with pytest.raises(UsageError, match="No seed"):
        brittleness([["a"]] * 3, 1, retrain, [])
    with pytest.raises(DataError, match="answers for 3 queries, where 4 are ranked"):
        brittleness([["a"]] * 4, 1, retrain, [0])
    with pytest.raises(DataError, match="k is 2"):
        brittleness([["a"]] * 3, 2, retrain, [0])


def test_outputs_flip_when_what_they_rest_on_goes_and_not_when_anything_goes(make_classifier):
    inputs = torch.eye(6)
    rows = [Example(f"row-{i}-{copy}", inputs[i], i % 2) for i in range(6) for copy in range(5)]
    queries = [Example(f"query-{i}", inputs[i], i % 2) for i in range(6)]

    def build():
        model = nn.Linear(6, 2, bias=False)
        with torch.no_grad():
            model.weight[0], model.weight[1] = torch.tensor([-0.1, 0.1] * 3), torch.tensor([0.1, -0.1] * 3)
        return model

    recipe = Recipe(lambda parameters: torch.optim.SGD(parameters, lr=1.0), (20,), 30)
    retraining = Retraining(make_classifier(build, rows), rows, queries, recipe)
    own = [[f"row-{i}-{copy}" for copy in range(5)] for i in range(6)]
    assert brittleness(own, 5, retraining.emitted, [0]).flip_rate == 1
    random = [[name for name, _ in top] for top in score_pass(random_pass(rows, 6), top_k=5).proponents]
    assert brittleness(random, 5, retraining.emitted, [0]).flip_rate == 0
