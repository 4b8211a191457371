"""Reading an index: its columns as Arrow batches, or its rows as arrays, at one pinned version."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
from lancedb.expr import Expr, col

from gradtrail.errors import StoreError
from gradtrail.storage.files.reading_ahead import read_ahead
from gradtrail.storage.gradients.check import IndexContents
from gradtrail.storage.gradients.lance_tables import lance_faults, open_existing, scan
from gradtrail.storage.gradients.rows import Column, IndexDescription, StoredBatch, column_names, stored_rows
from gradtrail.storage.gradients.vector_codes import BYTES, VectorType
from gradtrail.storage.process_memory import bound_readers

BATCH_ROWS = 4096
_BATCH_BYTES = 32 << 20
_LEAST_ROWS, _MOST_ROWS, _MOST_NUMBERS = 1024, 16384, 4 << 20
_IDS_PER_SCAN = 1000


bound_readers()


def batch_rows(dimension: int, kept_as: VectorType = "float32", made_of_each: int | None = None) -> int:
    """Rows of so many columns that are read at once: 32 MiB as kept, more of which is no faster.

    At most 4,096 rows, or between 1,024 and 16,384 that four million numbers are made of, where it is known how many
    are made of each row: what is made of a batch must stay small, too.
    """
    most = BATCH_ROWS
    if made_of_each is not None:
        most = max(_LEAST_ROWS, min(_MOST_ROWS, _MOST_NUMBERS // max(1, made_of_each)))
    return max(1, min(most, _BATCH_BYTES // (BYTES[kept_as] * max(1, dimension))))


class IndexScan:
    """Reads the table of one index, through handles of its own."""

    def __init__(self, connection: Any, table_name: str, index_id: str, description: IndexDescription) -> None:
        self._connection = connection
        self._table_name = table_name
        self._index_id = index_id
        self._description = description

    def batches(
        self, columns: Sequence[str], version: int, batch_size: int = BATCH_ROWS, matching: Expr | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The named columns of every row, or of those `matching`, at a LanceDB version, in the same order each time.

        Raises:
            StoreError: the table is gone, the version does not exist, or a file is damaged.
        """
        # A handle of its own, so that a reader of the pinned version does not move the writer's.
        table = open_existing(self._connection, self._table_name)
        if table is None:
            raise StoreError(
                f"The table of index {self._index_id} is gone.",
                "Restore it from a backup, or run gradtrail index again.",
            )
        with lance_faults(f"Opening version {version} of index {self._index_id}", "Name a version that exists."):
            table.checkout(version)
        yield from scan(table, columns, batch_size=batch_size, matching=matching)

    def contents_by_id(self, version: int) -> dict[str, str]:
        """Content digest by id of every row; reads those two columns only."""
        contents: dict[str, str] = {}
        for batch in self.batches(["example_id", "content_sha256"], version):
            ids, digests = (batch.column(name).to_pylist() for name in ("example_id", "content_sha256"))
            contents.update(zip(ids, digests, strict=True))
        return contents

    def read_back(self, version: int) -> IndexContents:
        """Everything that tells whether the rows are as they were measured."""
        contents = IndexContents(self._description)
        for batch in self.batches(self._description.schema().names, version):
            contents.add(batch)
        return contents

    def rows(self, version: int, columns: Collection[Column], batch_size: int | None = None) -> Iterator[StoredBatch]:
        """Every row at a LanceDB version, with the columns asked for; raises as `batches` does.

        One batch is read ahead. Without a `batch_size` batches are as large as is read fastest: `batch_rows`.
        """
        names = column_names(self._description, columns)
        described = self._description
        fastest = batch_rows(described.dimension, described.code.type) if "vector" in columns else BATCH_ROWS
        size = batch_size or fastest
        for batch in read_ahead(self.batches(names, version, size)):
            yield stored_rows(batch, self._description, columns)

    def rows_of(self, version: int, example_ids: Sequence[str], columns: Collection[Column]) -> Iterator[StoredBatch]:
        """The rows of some examples, in any order; ids that the index does not hold are passed over."""
        names, wanted = column_names(self._description, columns), list(dict.fromkeys(example_ids))
        for start in range(0, len(wanted), _IDS_PER_SCAN):
            among = col("example_id").isin(wanted[start : start + _IDS_PER_SCAN])
            for batch in self.batches(names, version, matching=among):
                yield stored_rows(batch, self._description, columns)
