"""The scoring pass over one index, or over several (one a checkpoint) whose scores are joined by example id.

`sum` adds the scores of all members: of tracin_cp, whose queries carry the learning rate of their checkpoint, or of
influence functions, each with the curvature of its checkpoint. `mean_margin` averages
TRAK's kernels and 1 − p separately over the members, then multiplies (arXiv 2303.14186).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gradtrail.attribution.features.margins import LEAST_MARGIN, one_minus_probability
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.methods.prepared import PreparedQueries
from gradtrail.attribution.methods.registry import Combination
from gradtrail.attribution.scoring.batches import ScoredBatch, ScoringPass, score_batches
from gradtrail.errors import DataError, UsageError


@dataclass(frozen=True)
class Member:
    """One index: the outputs prepared for it, and its rows as often as asked."""

    queries: PreparedQueries
    rows: Callable[[], Iterable[GradientBatch]]


def scoring_pass(
    members: Sequence[Member],
    combination: Combination = "one",
    on_missing: Callable[[str], None] | None = None,
) -> ScoringPass:
    """Score the examples that every member holds.

    The scores of one index are streamed in the type of the queries; those of several are added in float64.
    Members whose rows come in the same order are joined batch by batch. Rows in another order wait for their partners,
    as one column of scores each, so memory grows with the disorder and not with the number of rows. An example that
    some member lacks is handed to `on_missing`, in each pass; without it, it raises.

    Raises:
        UsageError: without members, for members with different outputs, or a method that does not join indexes.
        DataError: while scoring, naming examples that some member lacks, or with a score that is not finite.
    """
    if not members:
        raise UsageError("No index to score.", "Pass at least one.")
    if combination == "one" and len(members) > 1:
        raise UsageError(
            f"This method scores one index, and {len(members)} were given.",
            "Choose one that joins several: tracin_cp, unrolled, trak, influence.",
        )
    ids = [member.queries.query_ids for member in members]
    if any(other != ids[0] for other in ids):
        raise UsageError(
            "The indexes were given different outputs, or in different orders.", "Prepare the same outputs for each."
        )

    def batches() -> Iterator[ScoredBatch]:
        if len(members) == 1 and combination != "mean_margin":
            return score_batches(members[0].queries, members[0].rows())
        return _joined([_scored(member, combination) for member in members], combination, on_missing)

    return ScoringPass(len(members[0].queries.vectors), batches)


@dataclass(frozen=True)
class _Piece:
    """Rows of one member: ids, scores to sum (queries, rows), 1 − p to average (rows,), and the rows themselves."""

    rows: GradientBatch
    scores: NDArray[np.float64]
    margins: NDArray[np.float64]

    def part(self, start: int, end: int | None) -> _Piece:
        chosen = slice(start, end)
        example_ids = list(self.rows.example_ids[chosen])
        return _Piece(
            GradientBatch(
                example_ids=example_ids,
                vectors=torch.empty(len(example_ids), 0),
                losses=self.rows.losses[chosen],
                squared_norms=self.rows.squared_norms[chosen],
                attributes={name: values[chosen] for name, values in self.rows.attributes.items()},
            ),
            self.scores[:, chosen],
            self.margins[chosen],
        )

    def plus(self, other: _Piece) -> _Piece:
        """Both members' share of the same examples; attributes are those of the first."""
        rows = GradientBatch(
            example_ids=self.rows.example_ids,
            vectors=self.rows.vectors,
            losses=self.rows.losses,
            squared_norms=self.rows.squared_norms.sum(1, keepdim=True) + other.rows.squared_norms.sum(1, keepdim=True),
            attributes=self.rows.attributes,
        )
        return _Piece(rows, self.scores + other.scores, self.margins + other.margins)


def _scored(member: Member, combination: Combination) -> Iterator[_Piece]:
    for rows, scores in score_batches(member.queries, member.rows()):
        margins = np.ones(len(rows.example_ids))
        if combination == "mean_margin":
            margins = one_minus_probability(rows.losses).clamp_min(LEAST_MARGIN).numpy()
        # The prepared query met the loss gradient; TRAK's kernel has the margin gradient φ / (1 − p).
        yield _Piece(rows, scores / margins, margins).part(0, None)


def _joined(
    streams: list[Iterator[_Piece]], combination: Combination, on_missing: Callable[[str], None] | None
) -> Iterator[ScoredBatch]:
    count = len(streams)
    waiting: dict[str, tuple[int, _Piece]] = {}
    heads: list[_Piece | None] = [next(stream, None) for stream in streams]
    while any(head is not None for head in heads):
        present = [head for head in heads if head is not None]
        length = min(len(head.rows.example_ids) for head in present)
        pieces = [head.part(0, length) for head in present]
        same = all(piece.rows.example_ids == pieces[0].rows.example_ids for piece in pieces)
        if len(present) == count and same:
            yield _finished(_sum(pieces), count, combination)
        else:
            for piece in pieces:
                yield from (_finished(done, count, combination) for done in _match(piece, waiting, count))
        for position, head in enumerate(heads):
            if head is not None:
                rest = len(head.rows.example_ids) > length
                heads[position] = head.part(length, None) if rest else next(streams[position], None)
    if waiting and on_missing is None:
        named = ", ".join(sorted(waiting)[:10])
        raise DataError(
            f"{len(waiting)} example(s) are in some of the indexes only: {named}.",
            "Index every checkpoint of the same dataset version, or say what to do with them by on_missing.",
        )
    if on_missing is not None:
        for example_id in sorted(waiting):
            on_missing(example_id)


def _match(piece: _Piece, waiting: dict[str, tuple[int, _Piece]], count: int) -> Iterator[_Piece]:
    """Rows that are now complete, one at a time; the others wait."""
    for position, example_id in enumerate(piece.rows.example_ids):
        row = piece.part(position, position + 1)
        seen, before = waiting.pop(example_id, (0, None))
        found = row if before is None else before.plus(row)
        if seen + 1 == count:
            yield found
        else:
            waiting[example_id] = (seen + 1, found)


def _sum(pieces: Sequence[_Piece]) -> _Piece:
    total = pieces[0]
    for piece in pieces[1:]:
        total = total.plus(piece)
    return total


def _finished(piece: _Piece, count: int, combination: Combination) -> ScoredBatch:
    if combination != "mean_margin":
        return piece.rows, piece.scores
    scores: NDArray[np.float64] = piece.scores / count * (piece.margins / count)
    if not torch.isfinite(torch.from_numpy(scores)).all():
        raise DataError("A score of the ensemble is not finite.", "Leave out the checkpoint whose losses are extreme.")
    return piece.rows, scores
