from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from gradtrail.attribution.features.rows import GradientBatch, StoredGradients
from gradtrail.attribution.methods.rules import PreparedQueries
from gradtrail.attribution.scoring.passes import overall_influence, score, shares
from gradtrail.errors import DataError, StoreError, UsageError

SOURCES = ("archive", "crawl", "forms")


def make_rows(vectors, attributes=None) -> GradientBatch:
    count = len(vectors)
    return GradientBatch(
        example_ids=[f"z{number:04d}" for number in range(count)],
        vectors=vectors,
        losses=torch.zeros(count, dtype=torch.float64),
        squared_norms=vectors.double().square().sum(1, keepdim=True),
        attributes=attributes or {},
    )


def cut(rows: GradientBatch, sizes: list[int], order: list[int] | None = None) -> list[GradientBatch]:
    order = order or list(range(len(rows.example_ids)))
    ends = list(itertools.accumulate(sizes))
    pieces = [order[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    return [
        GradientBatch(
            example_ids=[rows.example_ids[i] for i in piece],
            vectors=rows.vectors[piece],
            losses=rows.losses[piece],
            squared_norms=rows.squared_norms[piece],
            attributes={name: [values[i] for i in piece] for name, values in rows.attributes.items()},
        )
        for piece in pieces
    ]


@pytest.fixture
def small_integers():
    """Scores that are exact in any order of summation, with many ties."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randint(-2, 3, (500, 6), generator=generator).float()
    queries = torch.randint(-2, 3, (7, 6), generator=generator).float()
    queries[4] = 0
    codes = torch.randint(3, (500,), generator=generator).tolist()
    attributes = {"source": [SOURCES[code] for code in codes], "licence": ["", "MIT"] * 250}
    return PreparedQueries(queries, "none"), make_rows(vectors, attributes)


def dense_ranking(scores, ids, top_k, sign):
    signed = [
        (-sign * score, example_id) for score, example_id in zip(scores.tolist(), ids, strict=True) if sign * score > 0
    ]
    return [(example_id, -sign * negated) for negated, example_id in sorted(signed)[:top_k]]


@pytest.mark.parametrize("sizes", [[500], [1] * 500, [3, 300, 7, 190]], ids=["whole", "singles", "uneven"])
@pytest.mark.parametrize("top_k", [1, 10, 600])
def test_streaming_equals_a_dense_reference_with_ties_by_id(small_integers, sizes, top_k):
    queries, rows = small_integers
    order = torch.randperm(500, generator=torch.Generator().manual_seed(len(sizes))).tolist()
    result = score(queries, lambda: cut(rows, sizes, order), top_k=top_k)
    dense = (queries.vectors @ rows.vectors.T).double()
    for query in range(7):
        assert result.proponents[query] == dense_ranking(dense[query], rows.example_ids, top_k, 1)
        assert result.opponents[query] == dense_ranking(dense[query], rows.example_ids, top_k, -1)
    assert torch.equal(result.positive_mass, dense.clamp_min(0).sum(1))
    assert torch.equal(result.negative_mass, (-dense).clamp_min(0).sum(1))
    assert result.example_count == 500
    for name, values in rows.attributes.items():
        for value in set(values):
            member = torch.tensor([own == value for own in values])
            assert result.attribute_counts[name][value] == int(member.sum())
            assert torch.equal(result.attribute_mass["proponent"][name][value], dense[:, member].clamp_min(0).sum(1))
            assert torch.equal(result.attribute_mass["opponent"][name][value], (-dense[:, member]).clamp_min(0).sum(1))


def test_random_scores_agree_with_the_dense_reference():
    generator = torch.Generator().manual_seed(3)
    rows = make_rows(torch.randn(300, 40, generator=generator))
    queries = PreparedQueries(torch.randn(5, 40, generator=generator), "none")
    result = score(queries, lambda: cut(rows, [100, 200]), top_k=8)
    dense = queries.vectors.double() @ rows.vectors.double().T
    for query in range(5):
        expected = dense_ranking(dense[query], rows.example_ids, 8, 1)
        assert [name for name, _ in result.proponents[query]] == [name for name, _ in expected]
        assert [v for _, v in result.proponents[query]] == pytest.approx([v for _, v in expected], rel=1e-5)


def test_shares_sum_to_one_per_output_side_and_attribute_and_overall(small_integers):
    queries, rows = small_integers
    result = score(queries, lambda: cut(rows, [200, 300]), top_k=5)
    overall = overall_influence(queries, lambda: cut(rows, [250, 250]), result, top_k=5, permutations=20)
    found = shares(result, overall, [f"q{i}" for i in range(7)])
    sums: dict[tuple[str | None, str, str], float] = {}
    for share in found:
        key = (share.output_id, share.side, share.attribute)
        sums[key] = sums.get(key, 0.0) + share.share
        assert share.training_share == rows.attributes[share.attribute].count(share.value) / 500
        assert (share.interval_low is None) == (share.output_id is not None)
    assert list(sums.values()) == pytest.approx([1.0] * len(sums))
    assert len(sums) == 7 * 4  # six outputs and the whole, two sides, two attributes; q4 has no mass
    assert not [share for share in found if share.output_id == "q4"]


def test_overall_influence_is_the_mean_share_over_outputs_with_mass(small_integers):
    queries, rows = small_integers
    result = score(queries, lambda: [rows], top_k=5)
    overall = overall_influence(queries, lambda: cut(rows, [77, 423]), result, top_k=30, permutations=5)
    dense = (queries.vectors @ rows.vectors.T).double()
    for sign, ranked, side in ((1, overall.proponents, "proponent"), (-1, overall.opponents, "opponent")):
        parts = (sign * dense).clamp_min(0)
        parts = parts[parts.sum(1) > 0]
        mean = (parts / parts.sum(1, keepdim=True)).mean(0)
        assert [value for _, value in ranked] == pytest.approx(sorted(mean.tolist(), reverse=True)[:30])
        for source in SOURCES:
            member = torch.tensor([own == source for own in rows.attributes["source"]])
            assert overall.shares[side]["source"][source].share == pytest.approx(mean[member].sum().item())


def planted(factor: float) -> tuple[PreparedQueries, GradientBatch]:
    generator = torch.Generator().manual_seed(11)
    vectors = torch.randn(900, 20, generator=generator)
    influential = torch.rand(900, generator=generator) < 0.2
    vectors[influential] *= factor
    neutral = torch.rand(900, generator=generator) < 0.5
    attributes = {
        "planted": ["yes" if flag else "no" for flag in influential.tolist()],
        "neutral": ["left" if flag else "right" for flag in neutral.tolist()],
    }
    return PreparedQueries(torch.randn(6, 20, generator=generator), "none"), make_rows(vectors, attributes)


def test_the_permutation_interval_covers_a_neutral_attribute_and_excludes_an_influential_one():
    queries, rows = planted(factor=3.0)
    result = score(queries, lambda: cut(rows, [400, 500]), top_k=5)
    overall = overall_influence(queries, lambda: cut(rows, [400, 500]), result, top_k=5)
    for side in ("proponent", "opponent"):
        planted_share = overall.shares[side]["planted"]["yes"]
        assert planted_share.share > planted_share.high
        assert overall.shares[side]["planted"]["no"].share < overall.shares[side]["planted"]["no"].low
        for value in overall.shares[side]["neutral"].values():
            assert value.low <= value.share <= value.high
    again = overall_influence(queries, lambda: cut(rows, [400, 500]), result, top_k=5)
    assert again == overall
    assert overall_influence(queries, lambda: [rows], result, top_k=5, seed=1).shares != overall.shares


def test_the_interval_holds_about_its_nominal_share_of_neutral_attributes():
    queries, rows = planted(factor=1.0)
    generator = np.random.default_rng(0)
    attributes = {f"coin-{i}": generator.choice(["heads", "tails"], 900).tolist() for i in range(60)}
    rows = dataclasses.replace(rows, attributes=attributes)
    result = score(queries, lambda: [rows], top_k=1)
    overall = overall_influence(queries, lambda: [rows], result, top_k=1)
    inside = [
        values["heads"].low <= values["heads"].share <= values["heads"].high
        for values in overall.shares["proponent"].values()
    ]
    print("coverage of the 95 % interval", np.mean(inside))
    assert 0.85 <= np.mean(inside) <= 1.0


def test_attributes_that_appear_late_or_disappear_count_as_empty():
    rows = make_rows(torch.ones(6, 2))
    first, second, third = cut(rows, [2, 2, 2])
    second = dataclasses.replace(second, attributes={"source": ["a", "b"]})
    queries = PreparedQueries(torch.ones(1, 2), "none")
    batches = [first, second, third]
    result = score(queries, lambda: batches, top_k=1)
    assert result.attribute_counts == {"source": {"": 4, "a": 1, "b": 1}}
    assert result.attribute_mass["proponent"]["source"][""].tolist() == [8.0]
    overall = overall_influence(queries, lambda: batches, result, top_k=1, permutations=3)
    assert overall.shares["proponent"]["source"][""].share == pytest.approx(4 / 6)


def test_the_values_with_most_examples_get_an_interval_however_much_they_carry(monkeypatch):
    monkeypatch.setattr("gradtrail.attribution.scoring.permutation_intervals.MOST_TESTED", 2)
    rows = make_rows(torch.tensor([[1.0], [9.0], [1.0], [2.0], [1.0]]), {"author": ["x", "y", "x", "z", "z"]})
    queries = PreparedQueries(torch.ones(1, 1), "none")
    overall = overall_influence(
        queries, lambda: [rows], score(queries, lambda: [rows], top_k=1), top_k=1, permutations=3
    )
    found = overall.shares["proponent"]["author"]
    assert (found["y"].low, found["y"].share) == (None, pytest.approx(9 / 14))
    assert found["x"].low is not None
    assert found["z"].high is not None


@dataclasses.dataclass(frozen=True)
class InPieces:
    """A batch of a store that hands its vectors over three rows at a time, and never whole."""

    rows: GradientBatch

    def __getattr__(self, name):
        value = getattr(self.rows, name)
        return value.numpy() if isinstance(value, torch.Tensor) else value

    @property
    def shape(self):
        return tuple(self.rows.vectors.shape)

    @property
    def vectors(self):
        raise AssertionError("widened whole")

    def pieces(self):
        return (piece.numpy() for piece in self.rows.vectors.split(3))


def test_rows_of_a_store_are_scored_in_pieces_without_ever_being_whole(small_integers):
    queries, rows = small_integers
    sizes = [100, 1, 399]
    in_pieces = score(queries, lambda: [StoredGradients(InPieces(part)) for part in cut(rows, sizes)], top_k=5)
    whole = score(queries, lambda: cut(rows, sizes), top_k=5)
    assert (in_pieces.proponents, in_pieces.opponents) == (whole.proponents, whole.opponents)
    assert torch.equal(in_pieces.positive_mass, whole.positive_mass)
    assert in_pieces.attribute_counts == whole.attribute_counts


def test_memory_holds_one_batch_at_a_time(small_integers):
    queries, rows = small_integers
    alive: set[int] = set()
    most = 0

    def stream():
        nonlocal most
        for piece in cut(rows, [50] * 10):
            import weakref

            vectors = piece.vectors.clone()
            alive.add(id(vectors))
            weakref.finalize(vectors, alive.discard, id(vectors))
            most = max(most, len(alive))
            yield dataclasses.replace(piece, vectors=vectors)
            del vectors

    score(queries, stream, top_k=3)
    assert most <= 2


def test_an_empty_index_a_wrong_width_and_a_changed_index_are_refused(small_integers):
    queries, rows = small_integers
    with pytest.raises(DataError, match="no rows"):
        score(queries, lambda: [], top_k=1)
    with pytest.raises(StoreError, match="5 columns"):
        score(queries, lambda: [make_rows(torch.zeros(2, 5))], top_k=1)
    result = score(queries, lambda: [rows], top_k=1)
    with pytest.raises(StoreError, match="500 rows in the first pass and 400"):
        overall_influence(queries, lambda: cut(rows, [400]), result, top_k=1)


def test_a_score_that_is_not_finite_names_example_and_output():
    vectors = torch.ones(3, 2)
    vectors[1, 0] = torch.inf
    queries = PreparedQueries(torch.ones(1, 2), "none", query_ids=("inbox:7",))
    with pytest.raises(DataError, match="example z0001 for output inbox:7"):
        score(queries, lambda: [make_rows(vectors)], top_k=1)


def test_output_ids_must_name_every_query_once(small_integers):
    queries, rows = small_integers
    result = score(queries, lambda: [rows], top_k=1)
    overall = overall_influence(queries, lambda: [rows], result, top_k=1, permutations=2)
    for ids in (["a"], ["a"] * 7):
        with pytest.raises(UsageError, match="output ids"):
            shares(result, overall, ids)
