"""The table of one index: appended to until complete, sealed, then read at its pinned version for good."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradtrail.errors import DataError, StoreError
from gradtrail.storage.gradients.lance_tables import (
    append_rows,
    insert_missing,
    lance_faults,
    latest_version,
    writing_alone,
)
from gradtrail.storage.gradients.measured import first_few, require_unique
from gradtrail.storage.gradients.queries_table import QueriesTable
from gradtrail.storage.gradients.rows import (
    MEASURED,
    Column,
    IndexDescription,
    StoredBatch,
    contents_of,
    index_rows,
)
from gradtrail.storage.gradients.scan import IndexScan, batch_rows
from gradtrail.storage.gradients.seal import IndexSeal, Seal


class IndexTable:
    """The gradient table of one index, and the queries measured against it."""

    def __init__(self, connection: Any, index_id: str, description: IndexDescription, table: Any) -> None:
        self.index_id = index_id
        self.dimension = description.dimension
        self.group_count = description.group_count
        self.attribute_names = description.attribute_names
        self.config = description.config
        self.vector_type = description.code.type
        self._connection = connection
        self._description = description
        self._table = table
        self._scan = IndexScan(connection, table.name, index_id, description)
        self._seal = IndexSeal(connection, table, index_id, self._scan)
        # What is stored, as far as this process has read and written it, and the version at which that was all.
        self._known: dict[str, str] | None = None
        self._known_at = 0
        self._queries = QueriesTable(
            connection, f"queries_{index_id}", dimension=self.dimension, group_count=self.group_count
        )

    @property
    def uri(self) -> str:
        """Where the table lies."""
        return f"{str(self._connection.uri).rstrip('/')}/{self._table.name}.lance"

    def present(self) -> dict[str, str]:
        """Content digest by id of every example stored so far; reads those two columns only."""
        return dict(self._read_known())

    def count(self) -> int:
        """Number of rows stored so far, by whichever process."""
        version = latest_version(self._table)
        with lance_faults(f"Counting version {version} of index {self.index_id}", "Check that the store can be read."):
            return int(self._table.count_rows())

    def append(
        self,
        *,
        example_ids: Sequence[str],
        content_sha256: Sequence[str],
        vectors: NDArray[np.float32],
        losses: NDArray[np.float64],
        squared_norms: NDArray[np.float64],
        attributes: Mapping[str, Sequence[str | None]],
    ) -> int:
        """Store a batch, in one commit; rows that are there already with the same content are left as they are.

        Args and errors are those of `prepare` and `store`, which to call apart pays where batches are small.

        Returns:
            The number of rows newly written.
        """
        rows = self.prepare(
            example_ids=example_ids,
            content_sha256=content_sha256,
            vectors=vectors,
            losses=losses,
            squared_norms=squared_norms,
            attributes=attributes,
        )
        return self.store([rows])

    def prepare(
        self,
        *,
        example_ids: Sequence[str],
        content_sha256: Sequence[str],
        vectors: NDArray[np.float32],
        losses: NDArray[np.float64],
        squared_norms: NDArray[np.float64],
        attributes: Mapping[str, Sequence[str | None]],
    ) -> pa.Table:
        """Check a batch and bring it into the form that `store` takes; `vectors` are not copied where they are float32.

        Args:
            example_ids, content_sha256: B ids and digests. vectors: (B, D) float32. losses: (B,).
            squared_norms: (B, G), unweighted. attributes: B values per attribute name of the index.

        Raises:
            DataError: a value that is not finite or too large for the type of the index, a wrong shape, or an id twice.
        """
        return index_rows(self._description, example_ids, content_sha256, vectors, losses, squared_norms, attributes)

    def store(self, batches: Sequence[pa.Table]) -> int:
        """Store prepared batches, in one commit; rows that are there already with the same content stay as they are.

        Each call makes one file, so thousands of rows together are written and read faster. Rows are appended while
        this is the table's only writer since it was last read, which a lock makes sure of; otherwise, and in object
        stores, they are merged by id.

        Returns:
            The number of rows newly written.

        Raises:
            DataError: an id twice, or stored with other content.
            StoreError: the index is sealed and a row is new, or LanceDB cannot write. Nothing is stored.
        """
        rows = pa.concat_tables(batches)
        require_unique("example", [(example_id,) for example_id in rows["example_id"].to_pylist()])
        contents = contents_of(rows)
        with writing_alone(self._connection, self._table.name) as alone:
            known = self._read_known() if self._known is None else self._known
            _require_same_content(contents, known)
            missing = [position for position, example_id in enumerate(contents) if example_id not in known]
            if not missing:
                return 0
            self._refuse_if_sealed([example_id for example_id in contents if example_id not in known])
            rows = rows if len(missing) == len(rows) else rows.take(missing)
            if alone and latest_version(self._table) == self._known_at:
                self._known_at = append_rows(self._table, rows)
                known.update(contents)
                return len(missing)
            written = insert_missing(self._table, ["example_id"], rows)
            known.update(contents)
        if written < len(missing):
            _require_same_content(contents, self._read_known())
        return written

    def seal(self, expected: Mapping[str, str]) -> int:
        """Check that the table holds exactly `expected` (content digest by id), then pin this version for good.

        Reads every row back once; where it is sealed already, only ids and digests. Safe to repeat after a kill; to be
        called by one process at a time.

        Returns:
            The pinned LanceDB version, tagged `complete`.

        Raises:
            StoreError: missing, extra, duplicate, changed or damaged rows; the message names the first few.
        """
        return self._seal.put(expected)

    def sealed_version(self) -> int | None:
        """The pinned LanceDB version, or None while the index is being built."""
        return self._seal.version()

    def seal_record(self) -> Seal | None:
        """Version, row count and content digest of the sealed index; None while it is being built."""
        return self._seal.record()

    def rows_at_once(self, queries: int) -> int:
        """The `batch_size` of `stream` that is fastest where every row meets so many queries, group by group."""
        return batch_rows(self.dimension, self.vector_type, queries * self.group_count)

    def stream(
        self, *, batch_size: int | None = None, version: int | None = None, columns: Collection[Column] = MEASURED
    ) -> Iterator[StoredBatch]:
        """Every row of the pinned version, in batches of at most `batch_size`, in the same order each time.

        Args:
            batch_size: None for as many rows as are read fastest.
            version: another LanceDB version to read, sealed or not.
            columns: what to read beside the ids.

        Raises:
            StoreError: the index is not sealed and no version was named, or a file is damaged.
        """
        pinned = self.sealed_version() if version is None else version
        if pinned is None:
            raise StoreError(
                f"Index {self.index_id} is not complete: reading it would score some examples and not others.",
                "Finish it with `gradtrail index`.",
            )
        yield from self._scan.rows(pinned, columns, batch_size)

    def rows_of(
        self, example_ids: Sequence[str], *, version: int, columns: Collection[Column] = MEASURED
    ) -> Iterator[StoredBatch]:
        """The rows of some examples at a LanceDB version; ids that the index does not hold are passed over."""
        yield from self._scan.rows_of(version, example_ids, columns)

    def put_queries(
        self,
        *,
        output_ids: Sequence[str],
        targets: Sequence[str],
        vectors: NDArray[np.float32],
        losses: NDArray[np.float64],
        squared_norms: NDArray[np.float64],
    ) -> int:
        """Keep Q measured outputs, keyed by (output_id, target); one that is there stays as first measured.

        Args:
            vectors: (Q, D) float32, unweighted. losses: (Q,). squared_norms: (Q, G).

        Returns:
            The number of outputs newly written.

        Raises:
            DataError: a value that is not finite, a wrong shape, or one output twice.
        """
        return self._queries.put(output_ids, targets, vectors, losses, squared_norms)

    def queries(self, output_ids: Sequence[str] | None = None, *, target: str | None = None) -> StoredBatch:
        """The stored outputs among `output_ids`, in that order, under one `target` or all of theirs; None asks for all.

        An output that was never measured is not in the answer.
        """
        return self._queries.read(output_ids, target)

    def forget_queries(self, output_ids: Sequence[str]) -> int:
        """Remove what was measured of these outputs, bytes too; return how many rows that were. To be called alone."""
        return self._queries.forget(output_ids)

    def verify(self) -> list[str]:
        """What is wrong with the sealed index and its queries, in words; empty when nothing is. Reads every row."""
        try:
            seal = self.seal_record()
            if seal is None:
                return [f"Index {self.index_id} is not sealed, or the record of its seal is gone."]
            problems = self._seal.problems(seal) + self._queries.problems()
        except StoreError as fault:
            return [f"Index {self.index_id}: {fault}"]
        return [f"Index {self.index_id} at version {seal.version}: {problem}" for problem in problems]

    def _read_known(self) -> dict[str, str]:
        version = latest_version(self._table)
        self._known, self._known_at = self._scan.contents_by_id(version), version
        return self._known

    def _refuse_if_sealed(self, missing: Sequence[str]) -> None:
        if self.sealed_version() is not None:
            raise StoreError(
                f"Index {self.index_id} is sealed and does not hold {first_few(missing)}.",
                "A sealed index is complete for its dataset version: register a new version and index that.",
            )


def _require_same_content(contents: Mapping[str, str], known: Mapping[str, str]) -> None:
    changed = [example_id for example_id, content in contents.items() if known.get(example_id, content) != content]
    if changed:
        raise DataError(
            f"Example {first_few(changed)} is stored already with other content.",
            "The dataset changed under its version: register a new dataset version and index that.",
        )
