"""The seal of an index: one LanceDB version, checked row by row, pinned by a tag, and recorded by a digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from gradtrail.errors import StoreError
from gradtrail.storage.gradients.check import IndexContents, differences
from gradtrail.storage.gradients.lance_tables import (
    compact,
    key_field,
    lance_faults,
    latest_version,
    open_existing,
    open_or_create,
    scan,
)
from gradtrail.storage.gradients.scan import BATCH_ROWS, IndexScan

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


@dataclass(frozen=True)
class Seal:
    """What a sealed index held: the pinned LanceDB version, its rows, and a digest of them that no order changes."""

    version: int
    rows: int
    rows_sha256: str


class IndexSeal:
    """Puts the seal on the table of one index, and holds what the table says now against it.

    The record is written before the tag, so that a kill between the two leaves an index that is not sealed; the next
    call reads it back again.
    """

    def __init__(self, connection: Any, table: Any, index_id: str, index_scan: IndexScan) -> None:
        self._connection = connection
        self._table = table
        self._index_id = index_id
        self._scan = index_scan

    def version(self) -> int | None:
        """The pinned LanceDB version, or None while the index is being built."""
        with lance_faults(f"Reading the tags of index {self._index_id}", "Check that the store can be read."):
            tag = self._table.tags.list().get(_COMPLETE)
        return None if tag is None else int(tag["version"])

    def record(self) -> Seal | None:
        """Version, row count and content digest of the sealed index; None while it is being built."""
        version = self.version()
        seals = open_existing(self._connection, _SEALS)
        if version is None or seals is None:
            return None
        for batch in scan(seals, _SEALS_SCHEMA.names, batch_size=BATCH_ROWS):
            for row in batch.to_pylist():
                if row["index_id"] == self._index_id:
                    return Seal(version, row["rows"], row["rows_sha256"])
        return None

    def put(self, expected: Mapping[str, str]) -> int:
        """Check that the table holds exactly `expected` (content digest by id), pin its version and return it.

        Raises:
            StoreError: missing, extra, duplicate, changed or damaged rows; the message names the first few.
        """
        seal = self.record()
        if seal is not None:
            self._refuse(differences(self._scan.contents_by_id(seal.version), expected))
            return seal.version
        version = self.version()
        if version is None:
            self._compact()
            version = latest_version(self._table)
        contents = self._scan.read_back(version)
        self._refuse(contents.problems() + contents.differences(expected))
        self._put_record(contents)
        with lance_faults(f"Tagging version {version} of index {self._index_id}", "Run the same command again."):
            if self.version() is None:
                self._table.tags.create(_COMPLETE, version)
        return version

    def problems(self, seal: Seal) -> list[str]:
        """How the rows of the pinned version differ from what was sealed, in words. Reads every row.

        Raises:
            StoreError: the version cannot be read.
        """
        contents = self._scan.read_back(seal.version)
        problems = contents.problems()
        if len(contents.ids) != seal.rows:
            problems.append(f"It holds {len(contents.ids)} rows; {seal.rows} were sealed.")
        if contents.rows_sha256() != seal.rows_sha256:
            problems.append(f"Its rows have the digest {contents.rows_sha256()}; {seal.rows_sha256} was sealed.")
        return problems

    def _compact(self) -> None:
        with lance_faults(f"Compacting index {self._index_id}", "Run the same command again, in one process only."):
            self._table.checkout_latest()
            fragments = self._table.stats()["fragment_stats"]
            if fragments["num_fragments"] > _MANY_FRAGMENTS and fragments["lengths"]["mean"] < _SMALL_FRAGMENT_ROWS:
                # Nobody reads a version of an index that is not sealed; one that stays costs room and nothing else.
                compact(self._table)

    def _put_record(self, contents: IndexContents) -> None:
        record = {"index_id": self._index_id, "rows": len(contents.ids), "rows_sha256": contents.rows_sha256()}
        seals = open_or_create(self._connection, _SEALS, _SEALS_SCHEMA)
        with lance_faults(f"Recording the seal of index {self._index_id}", "Run the same command again: it resumes."):
            seals.checkout_latest()
            merge = seals.merge_insert("index_id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(pa.Table.from_pylist([record], schema=_SEALS_SCHEMA))

    def _refuse(self, problems: Sequence[str]) -> None:
        if problems:
            raise StoreError(
                f"Index {self._index_id} cannot be sealed: {' '.join(problems)}",
                "Run the index flow again: it adds what is missing. Anything else: delete the table and index again.",
            )
