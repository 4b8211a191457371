"""The scores of an audit, every example with every output, computed again from the stored gradients as a stream.

An audit keeps the strongest examples and the shares of the attributes it knew of. A question that nobody foresaw needs
all scores: here they are, batch by batch, as Arrow that SQL joins with the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from gradtrail.attribution.methods.registry import settled
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.scoring.batches import ScoringPass
from gradtrail.errors import StoreError
from gradtrail.lineage.read import queries
from gradtrail.tasks.audit.preparing import prepare_audit
from gradtrail.tasks.collect.outputs_as_examples import output_examples
from gradtrail.tasks.core.ledger_nouns import recorded_weighting
from gradtrail.tasks.core.models import pinned_model
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.opened import OpenIndex, open_index

SCORE_SCHEMA = pa.schema([("output_id", pa.string()), ("example_id", pa.string()), ("score", pa.float64())])
_MOST_SCORES_A_PIECE = 1 << 20


class ScoreStream:
    """All scores of an audit: output_id, example_id, score. Every read streams over the index once more.

    One batch of the index times the outputs is held at a time; DuckDB, pyarrow and pandas read it as an Arrow stream.
    """

    def __init__(self, scoring: ScoringPass, output_ids: Sequence[str]) -> None:
        self._scoring = scoring
        self._output_ids = pa.array(output_ids, pa.string())

    def reader(self) -> pa.RecordBatchReader:
        """A new stream from the first example on."""
        return pa.RecordBatchReader.from_batches(SCORE_SCHEMA, self._batches())

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.reader().__arrow_c_stream__(requested_schema)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        count = len(self._output_ids)
        size = max(1, _MOST_SCORES_A_PIECE // max(1, count))
        for rows, scores in self._scoring.batches():
            for start in range(0, len(rows.example_ids), size):
                example_ids = pa.array(rows.example_ids[start : start + size], pa.string())
                piece = np.ascontiguousarray(scores[:, start : start + size], np.float64)
                yield pa.RecordBatch.from_arrays(
                    [
                        self._output_ids.take(pa.array(np.repeat(np.arange(count), len(example_ids)))),
                        example_ids.take(pa.array(np.tile(np.arange(len(example_ids)), count))),
                        pa.array(piece.reshape(-1)),
                    ],
                    schema=SCORE_SCHEMA,
                )


@dataclass(frozen=True)
class AuditScores:
    """What a recorded audit scored: `scores` as a stream, and `queries`, its outputs as they were measured.

    `queries` has output_id, target, loss and vector, at the serving checkpoint.
    """

    audit_id: str
    dataset_version_id: str
    scores: ScoreStream
    queries: pa.Table


def audit_scores(workspace: Workspace, audit_id: str) -> AuditScores:
    """Open the indexes of a recorded audit and prepare its outputs as it did.

    Raises:
        NotFoundError: if there is no such audit.
        StoreError: if an index or the stored vector of an output is gone.
    """
    with workspace.ledger().read() as connection:
        details = queries.audit_details(connection, audit_id)
        weighting = recorded_weighting(connection, details.audit.weighting_id)
    audit = details.audit
    pinned = pinned_model(workspace, audit.model_version_id)
    opened = [open_index(workspace, pinned, index_id) for index_id in audit.index_ids]
    target = audit.outputs[0][1]
    output_ids = [output_id for output_id, _ in audit.outputs]
    measured = [each.queries(output_ids, target) for each in opened]
    missing = set(output_ids) - set(measured[-1].example_ids)
    if missing:
        raise StoreError(
            f"The stored vectors of {len(missing):,} outputs are gone, for example of {min(missing)}.",
            "They were erased, or the gradient store is not the one of this audit: see `gradtrail verify`.",
        )

    examples_of = partial(output_examples, workspace, pinned, target)
    spec = settled(MethodSpec.from_json({**audit.parameters, "method": audit.method}), pinned.adapter)
    prepared = prepare_audit(workspace, pinned, opened, measured, spec, weighting, examples_of, target=target)
    return AuditScores(
        audit_id,
        details.dataset_version_id,
        ScoreStream(prepared.scoring, prepared.queries.example_ids),
        _queries(opened[-1], prepared.queries.example_ids, target),
    )


def _queries(opened: OpenIndex, output_ids: Sequence[str], target: str) -> pa.Table:
    rows = opened.queries(output_ids, target)  # type: ignore[arg-type]  # a target that the ledger recorded
    dimension = rows.vectors.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.vectors.reshape(-1).numpy()), dimension)
    return pa.table(
        {
            "output_id": pa.array(rows.example_ids, pa.string()),
            "target": pa.array([target] * len(rows.example_ids), pa.string()),
            "loss": pa.array(rows.losses.double().numpy()),
            "vector": vectors,
        }
    )
