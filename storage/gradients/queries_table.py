"""The queries of an index: φ(q), loss and norms of each output, kept so that a new question needs no payload."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from lancedb.expr import Expr, col, lit
from numpy.typing import NDArray
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from gradtrail.errors import StoreError
from gradtrail.storage.gradients.lance_tables import (
    compact,
    gather,
    insert_missing,
    key_field,
    lance_faults,
    open_existing,
    open_or_create,
    scan,
    writing_alone,
)
from gradtrail.storage.gradients.measured import (
    first_few,
    measured_columns,
    measured_fields,
    require_unique,
    row_digests,
    text_column,
)
from gradtrail.storage.gradients.rows import StoredBatch
from gradtrail.storage.gradients.vector_codes import VectorCode, matrix

_KEYS = ("output_id", "target")
# Outputs are few: they are kept whole, whatever the type of the index.
_CODE = VectorCode()
_BATCH_ROWS = 1024
_IDS_PER_SCAN = 1000
_LOOKS = 5
# Every file costs each later reader a look and each later version a line.
_MOST_FILES = 64
# Where no lock holds other writers off, one of them may still build on an earlier version.
_AN_HOUR, _NOTHING = timedelta(hours=1), timedelta(0)

_Seen = TypeVar("_Seen")


class QueriesTable:
    """One LanceDB table beside the index table, keyed by (output_id, target); created by the first write."""

    def __init__(self, connection: Any, name: str, *, dimension: int, group_count: int) -> None:
        self._connection = connection
        self._name = name
        fields = [key_field("output_id", 1), key_field("target", 2)]
        self._schema = pa.schema(fields + measured_fields(dimension, group_count, _CODE))

    def put(
        self,
        output_ids: Sequence[str],
        targets: Sequence[str],
        vectors: NDArray[np.float32],
        losses: NDArray[np.float64],
        squared_norms: NDArray[np.float64],
    ) -> int:
        """Insert the outputs that are not there yet; one that is stays as it was first measured.

        Each call makes a file and a version; when many have come together they are gathered in one.

        Raises:
            DataError: a value that is not finite, a wrong shape, or one output twice in the batch.
            StoreError: LanceDB cannot write.
        """
        keys = list(zip(output_ids, targets, strict=True))
        require_unique("output", keys)
        columns = [text_column("output id", output_ids), text_column("target", targets)]
        columns += measured_columns(
            "output", keys, vectors, losses, squared_norms, list(self._schema)[len(_KEYS) :], _CODE
        )
        if not keys:
            return 0
        with writing_alone(self._connection, self._name) as alone:
            table = open_or_create(self._connection, self._name, self._schema)
            written = insert_missing(table, _KEYS, pa.Table.from_arrays(columns, schema=self._schema))
            # Another writer, where none is held off, may be in the way; then a later call gathers.
            with nullcontext() if alone else suppress(StoreError):
                gather(table, most_files=_MOST_FILES, keep=_NOTHING if alone else _AN_HOUR)
        return written

    def read(self, output_ids: Sequence[str] | None = None, target: str | None = None) -> StoredBatch:
        """The stored outputs among `output_ids`, in that order, under one `target` or all; None asks for all."""
        batches = self._look(lambda table: list(_batches(table, self._schema, output_ids, target))) or []
        rows = pa.Table.from_batches(batches, schema=self._schema).combine_chunks()
        ids, targets = rows["output_id"].to_pylist(), rows["target"].to_pylist()
        rank = {output_id: position for position, output_id in enumerate(output_ids or sorted(set(ids)))}
        order = sorted(range(len(ids)), key=lambda row: (rank[ids[row]], targets[row]))
        batch = rows.take(pa.array(order, type=pa.int64())).combine_chunks().to_batches()
        return _from_batch(batch[0] if batch else pa.RecordBatch.from_pylist([], schema=self._schema))

    def forget(self, output_ids: Sequence[str]) -> int:
        """Remove what was measured of these outputs, bytes and earlier versions too; return how many rows that were.

        The table is written anew without them. A deletion would name them in the table's log, and Lance would leave
        their bytes where they are as long as few rows of a file are deleted. In an object store nobody can be held off:
        there Lance removes what a write that was cut short has left a week later.

        Raises:
            StoreError: the table cannot be written, or an earlier version cannot be removed yet; the next call goes on.
        """
        with writing_alone(self._connection, self._name) as alone:
            table = open_existing(self._connection, self._name)
            if table is None:
                return 0
            with lance_faults(
                f"Erasing from the LanceDB table {self._name}", "Run the same command again: it resumes."
            ):
                before = table.count_rows()
                kept = self._batches_without(table, set(output_ids))
                table.add(pa.RecordBatchReader.from_batches(self._schema, kept), mode="overwrite")
            stay = compact(table, unfinished=alone)
            left = table.count_rows()
        if stay:
            raise StoreError(
                f"{stay} earlier versions of the LanceDB table {self._name} still hold what is to be erased: they were "
                "written when the clock was ahead of what it shows now.",
                "Run the same command again when the clock has caught up.",
            )
        return int(before - left)

    def problems(self) -> list[str]:
        """What is wrong with the stored outputs; empty when nothing is."""
        damaged = self._look(lambda table: list(_damaged(_batches(table, self._schema)))) or []
        return [f"Queries changed since they were measured: {first_few(damaged)}."] if damaged else []

    def _batches_without(self, table: Any, output_ids: Set[str]) -> Iterator[pa.RecordBatch]:
        for batch in scan(table, self._schema.names, batch_size=_BATCH_ROWS):
            kept = [output_id not in output_ids for output_id in batch.column("output_id").to_pylist()]
            yield batch.filter(pa.array(kept, type=pa.bool_()))

    def _look(self, look: Callable[[Any], _Seen]) -> _Seen | None:
        """What `look` sees of the newest version; None where there is no table.

        Nobody who writes waits for readers: an erasure, or a `put` that gathers, may take the version away while it is
        looked at. Then the look is taken again.
        """

        def once() -> _Seen | None:
            table = open_existing(self._connection, self._name)
            return None if table is None else look(table)

        attempts = Retrying(retry=retry_if_exception_type(StoreError), stop=stop_after_attempt(_LOOKS), reraise=True)
        return attempts(once)


def _batches(
    table: Any, schema: pa.Schema, output_ids: Sequence[str] | None = None, target: str | None = None
) -> Iterator[pa.RecordBatch]:
    for matching in _matching(output_ids, target):
        yield from scan(table, schema.names, batch_size=_BATCH_ROWS, matching=matching)


def _damaged(batches: Iterator[pa.RecordBatch]) -> Iterator[str]:
    for batch in batches:
        stored = _from_batch(batch)
        keys = list(zip(stored.example_ids, stored.targets, strict=True))
        digests = row_digests(keys, _CODE.stored(batch), stored.losses, stored.squared_norms)
        recorded = batch.column("row_sha256").to_pylist()
        yield from (key[0] for key, now, then in zip(keys, digests, recorded, strict=True) if now != then)


def _matching(output_ids: Sequence[str] | None, target: str | None) -> Iterator[Expr | None]:
    of_target = None if target is None else col("target") == lit(target)
    if output_ids is None:
        yield of_target
        return
    wanted = list(dict.fromkeys(output_ids))
    for start in range(0, len(wanted), _IDS_PER_SCAN):
        among = col("output_id").isin(wanted[start : start + _IDS_PER_SCAN])
        yield among if of_target is None else among.and_(of_target)


def _from_batch(batch: pa.RecordBatch) -> StoredBatch:
    return StoredBatch(
        example_ids=batch.column("output_id").to_pylist(),
        targets=batch.column("target").to_pylist(),
        kept=_CODE.stored(batch),
        code=_CODE,
        losses=batch.column("loss").to_numpy(zero_copy_only=False),
        squared_norms=matrix(batch, "squared_norms"),
    )
