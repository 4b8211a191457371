"""The gradient store: one LanceDB table per index, with one row of projected gradient for each training example."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import lancedb

from gradtrail.errors import StoreError
from gradtrail.storage.gradients.lance_tables import lance_faults, open_existing, open_or_create
from gradtrail.storage.gradients.measured import DIGEST_BYTES
from gradtrail.storage.gradients.rows import Column, IndexDescription, StoredBatch
from gradtrail.storage.gradients.seal import Seal
from gradtrail.storage.gradients.table import IndexTable
from gradtrail.storage.gradients.vector_codes import BYTES, SCALE_BYTES, VectorCode, VectorType

__all__ = ["Column", "GradientStore", "IndexTable", "Seal", "StoredBatch", "VectorType"]

_INDEX_ID = re.compile(r"[0-9a-f]{64}")
_TEXT_BYTES_PER_ROW = 200


class GradientStore:
    """Index tables under one folder or object-store URI."""

    def __init__(self, uri: str) -> None:
        """Connect to `uri`; a local folder is created.

        Raises:
            StoreError: the place cannot be reached or written.
        """
        self.uri = uri
        with lance_faults(f"Connecting to the gradient store at {uri}", "Check the path or URI and its permissions."):
            self._connection = lancedb.connect(uri)

    def open_index(
        self,
        index_id: str,
        *,
        dimension: int,
        group_count: int,
        attribute_names: Sequence[str],
        config: Mapping[str, Any],
        dtype: VectorType = "float32",
        group_dimensions: Sequence[int] = (),
    ) -> IndexTable:
        """Open the table of an index, or create it.

        `dtype` is how vectors are kept; `int8` keeps a scale for each row and group, and needs `group_dimensions`.

        Raises:
            UsageError: vectors cannot be kept so.
            StoreError: a table of this id exists with another dimension, other groups, attributes or configuration.
        """
        code = VectorCode(dtype, tuple(group_dimensions) if dtype == "int8" else ())
        wanted = IndexDescription(dimension, group_count, tuple(sorted(set(attribute_names))), dict(config), code)
        table = open_or_create(self._connection, _table_name(index_id), wanted.schema())
        stored = _description(table)
        theirs, ours = stored.as_json(), IndexDescription.of(table.name, wanted.schema()).as_json()
        differing = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
        if differing:
            changes = "; ".join(f"{name} is {theirs.get(name)}, asked for {ours.get(name)}" for name in differing)
            raise StoreError(
                f"Index {index_id} exists with another configuration: {changes}.",
                "Another configuration is another index: compute its id from the new configuration.",
            )
        return IndexTable(self._connection, index_id, stored, table)

    def existing(self, index_id: str) -> IndexTable | None:
        """The table of an index, or None where nothing of it was ever stored.

        Raises:
            StoreError: the table exists and cannot be read.
        """
        table = open_existing(self._connection, _table_name(index_id))
        if table is None:
            return None
        return IndexTable(self._connection, index_id, _description(table), table)

    @staticmethod
    def estimate(rows: int, dimension: int, group_count: int, dtype: VectorType = "float32") -> int:
        """Bytes on disk that an index of `rows` examples takes, to within a few percent."""
        vector = BYTES[dtype] * dimension + (SCALE_BYTES * group_count if dtype == "int8" else 0)
        return rows * (vector + 8 * (group_count + 1) + DIGEST_BYTES + _TEXT_BYTES_PER_ROW)


def _description(table: Any) -> IndexDescription:
    with lance_faults(
        f"Reading the schema of {table.name}",
        "Restore its files from a backup; or delete the table, and run gradtrail index again.",
    ):
        schema = table.schema
    return IndexDescription.of(table.name, schema)


def _table_name(index_id: str) -> str:
    if not _INDEX_ID.fullmatch(index_id):
        raise StoreError(f"{index_id!r} is not an index id.", "Use the 64 hexadecimal digits of `Index.index_id`.")
    return f"index_{index_id}"
