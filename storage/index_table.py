"""The table of one index: appended to until complete, sealed, then read at its pinned version for good."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradtrail.errors import DataError, StoreError
from gradtrail.storage.gradient_check import IndexContents, differences
from gradtrail.storage.gradient_rows import (
    MEASURED,
    Column,
    IndexDescription,
    IndexRows,
    StoredRows,
    index_rows,
)
from gradtrail.storage.index_scan import BATCH_ROWS, IndexScan
from gradtrail.storage.lance_tables import (
    append_rows,
    insert_missing,
    key_field,
    lance_faults,
    open_existing,
    open_or_create,
    scan,
    writing_alone,
)
from gradtrail.storage.measured import Measured, first_few, require_unique
from gradtrail.storage.queries_table import QueriesTable, StoredQueries

_COMPLETE = "complete"
_SEALS = "seals"
_SEALS_SCHEMA = pa.schema(
    [
        key_field("index_id"),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("rows_sha256", pa.string(), nullable=False),
    ]
)
# Compaction rewrites the whole table; it pays only where many small appends left many small files.
_MANY_FRAGMENTS = 32
_SMALL_FRAGMENT_ROWS = 1024
# Zero would be answered with a warning; nobody reads a version of an index that is not sealed.
_PRUNE_VERSIONS_OLDER_THAN = timedelta(milliseconds=1)


@dataclass(frozen=True)
class Seal:
    """What a sealed index held: the pinned LanceDB version, its rows, and a digest of them that no order changes."""

    version: int
    rows: int
    rows_sha256: str


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
    ) -> IndexRows:
        """Check a batch and bring it into the form that `store` takes; `vectors` are not copied where they are float32.

        Args:
            example_ids, content_sha256: B ids and digests. vectors: (B, D) float32. losses: (B,).
            squared_norms: (B, G), unweighted. attributes: B values per attribute name of the index.

        Raises:
            DataError: a value that is not finite or too large for the type of the index, a wrong shape, or an id twice.
        """
        measured = Measured(vectors, losses, squared_norms)
        return index_rows(self._description, example_ids, content_sha256, measured, attributes)

    def store(self, batches: Sequence[IndexRows]) -> int:
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
        require_unique("example", [(example_id,) for batch in batches for example_id in batch.contents])
        contents = {example_id: content for batch in batches for example_id, content in batch.contents.items()}
        with writing_alone(self._connection, self._table) as alone:
            known = self._read_known() if self._known is None else self._known
            _require_same_content(contents, known)
            missing = [position for position, example_id in enumerate(contents) if example_id not in known]
            if not missing:
                return 0
            self._refuse_if_sealed([example_id for example_id in contents if example_id not in known])
            rows = pa.concat_tables([batch.table for batch in batches])
            rows = rows if len(missing) == len(rows) else rows.take(missing)
            if alone and self._latest() == self._known_at:
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
        seal = self.seal_record()
        if seal is not None:
            self._refuse_to_seal(differences(self._contents_by_id(seal.version), expected))
            return seal.version
        version = self.sealed_version()
        if version is None:
            self._compact()
            version = self._latest()
        contents = self._read_back(version)
        self._refuse_to_seal(contents.problems() + contents.differences(expected))
        self._record_seal(contents)
        with lance_faults(f"Tagging version {version} of index {self.index_id}", "Run the same command again."):
            if self.sealed_version() is None:
                self._table.tags.create(_COMPLETE, version)
        return version

    def sealed_version(self) -> int | None:
        """The pinned LanceDB version, or None while the index is being built."""
        with lance_faults(f"Reading the tags of index {self.index_id}", "Check that the store can be read."):
            tag = self._table.tags.list().get(_COMPLETE)
        return None if tag is None else int(tag["version"])

    def seal_record(self) -> Seal | None:
        """Version, row count and content digest of the sealed index; None while it is being built."""
        version = self.sealed_version()
        seals = open_existing(self._connection, _SEALS)
        if version is None or seals is None:
            return None
        for batch in scan(seals, _SEALS_SCHEMA.names, batch_size=BATCH_ROWS):
            for row in batch.to_pylist():
                if row["index_id"] == self.index_id:
                    return Seal(version, row["rows"], row["rows_sha256"])
        return None

    def stream(
        self, *, batch_size: int | None = None, version: int | None = None, columns: Collection[Column] = MEASURED
    ) -> Iterator[StoredRows]:
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
    ) -> Iterator[StoredRows]:
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
        return self._queries.put(output_ids, targets, Measured(vectors, losses, squared_norms))

    def queries(self, output_ids: Sequence[str] | None = None, *, target: str | None = None) -> StoredQueries:
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
            contents = self._read_back(seal.version)
            problems = contents.problems() + self._queries.problems()
        except StoreError as fault:
            return [f"Index {self.index_id}: {fault}"]
        if len(contents.ids) != seal.rows:
            problems.append(f"It holds {len(contents.ids)} rows; {seal.rows} were sealed.")
        if contents.rows_sha256() != seal.rows_sha256:
            problems.append(f"Its rows have the digest {contents.rows_sha256()}; {seal.rows_sha256} was sealed.")
        return [f"Index {self.index_id} at version {seal.version}: {problem}" for problem in problems]

    def _read_known(self) -> dict[str, str]:
        version = self._latest()
        self._known, self._known_at = self._contents_by_id(version), version
        return self._known

    def _refuse_if_sealed(self, missing: Sequence[str]) -> None:
        if self.sealed_version() is not None:
            raise StoreError(
                f"Index {self.index_id} is sealed and does not hold {first_few(missing)}.",
                "A sealed index is complete for its dataset version: register a new version and index that.",
            )

    def _latest(self) -> int:
        with lance_faults(f"Reading the versions of index {self.index_id}", "Check that the store can be read."):
            self._table.checkout_latest()
            return int(self._table.version)

    def _contents_by_id(self, version: int) -> dict[str, str]:
        contents: dict[str, str] = {}
        for batch in self._scan.batches(["example_id", "content_sha256"], version):
            pairs = zip(batch.column("example_id").to_pylist(), batch.column("content_sha256").to_pylist(), strict=True)
            contents.update(pairs)
        return contents

    def _read_back(self, version: int) -> IndexContents:
        contents = IndexContents(self._description)
        for batch in self._scan.batches(self._description.schema().names, version):
            contents.add(batch)
        return contents

    def _compact(self) -> None:
        with lance_faults(f"Compacting index {self.index_id}", "Run the same command again, in one process only."):
            self._table.checkout_latest()
            fragments = self._table.stats()["fragment_stats"]
            if fragments["num_fragments"] > _MANY_FRAGMENTS and fragments["lengths"]["mean"] < _SMALL_FRAGMENT_ROWS:
                self._table.optimize(cleanup_older_than=_PRUNE_VERSIONS_OLDER_THAN)

    def _record_seal(self, contents: IndexContents) -> None:
        record = {"index_id": self.index_id, "rows": len(contents.ids), "rows_sha256": contents.rows_sha256()}
        seals = open_or_create(self._connection, _SEALS, _SEALS_SCHEMA)
        with lance_faults(f"Recording the seal of index {self.index_id}", "Run the same command again: it resumes."):
            seals.checkout_latest()
            merge = seals.merge_insert("index_id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(pa.Table.from_pylist([record], schema=_SEALS_SCHEMA))

    def _refuse_to_seal(self, problems: Sequence[str]) -> None:
        if problems:
            raise StoreError(
                f"Index {self.index_id} cannot be sealed: {' '.join(problems)}",
                "Run the index flow again: it adds what is missing. Anything else: delete the table and index again.",
            )


def _require_same_content(contents: Mapping[str, str], known: Mapping[str, str]) -> None:
    changed = [example_id for example_id, content in contents.items() if known.get(example_id, content) != content]
    if changed:
        raise DataError(
            f"Example {first_few(changed)} is stored already with other content.",
            "The dataset changed under its version: register a new dataset version and index that.",
        )
