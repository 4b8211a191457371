"""Rows of an index: what an index is made for, its Arrow schema, and batches on their way in and out."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradtrail.digests import canonical_json
from gradtrail.errors import DataError, StoreError, UsageError
from gradtrail.storage.files.arrow_text import ArrowText, CodedText
from gradtrail.storage.gradients.lance_tables import key_field
from gradtrail.storage.gradients.measured import (
    measured_columns,
    measured_fields,
    require_unique,
    text_column,
)
from gradtrail.storage.gradients.vector_codes import StoredVectors, VectorCode, matrix, no_vectors

Column = Literal["content_sha256", "vector", "loss", "squared_norms", "attributes"]
MEASURED: tuple[Column, ...] = ("vector", "loss", "squared_norms", "attributes")

_DESCRIPTION_KEY = b"gradtrail.index"


@dataclass(frozen=True)
class IndexDescription:
    """What an index table was made for; kept in the table's schema metadata as canonical JSON."""

    dimension: int
    group_count: int
    attribute_names: tuple[str, ...]
    config: Mapping[str, Any]
    code: VectorCode = field(default_factory=VectorCode)

    def schema(self) -> pa.Schema:
        """The explicit Arrow schema of the index table."""
        return self._schema

    @cached_property
    def _schema(self) -> pa.Schema:
        # Every batch asks for it, and canonical JSON of a large model's groups takes milliseconds.
        fields = [key_field("example_id"), pa.field("content_sha256", pa.string(), nullable=False)]
        fields += measured_fields(self.dimension, self.group_count, self.code)
        if self.attribute_names:
            fields.append(pa.field("attributes", self.attributes_type(), nullable=False))
        return pa.schema(fields, metadata={_DESCRIPTION_KEY: canonical_json(self.as_json())})

    def attributes_type(self) -> pa.StructType:
        """A struct of nullable strings, one per attribute."""
        return pa.struct([pa.field(name, pa.string()) for name in self.attribute_names])

    def as_json(self) -> dict[str, Any]:
        """The description as JSON values."""
        return {
            "dimension": self.dimension,
            "group_count": self.group_count,
            "attribute_names": list(self.attribute_names),
            "config": dict(self.config),
            **self.code.as_json(),
        }

    @classmethod
    def of(cls, table_name: str, schema: pa.Schema) -> IndexDescription:
        """Read the description back from a stored schema.

        Raises:
            StoreError: the schema is not one that gradtrail wrote.
        """
        try:
            stored = json.loads((schema.metadata or {})[_DESCRIPTION_KEY])
            description = cls(
                stored["dimension"],
                stored["group_count"],
                tuple(stored["attribute_names"]),
                stored["config"],
                VectorCode(stored.get("dtype", "float32"), tuple(stored.get("group_dimensions", ()))),
            )
        except (KeyError, TypeError, ValueError, UsageError) as fault:
            raise StoreError(
                f"Table {table_name} carries no readable description of its index.", "Delete the table and index again."
            ) from fault
        if not schema.equals(description.schema(), check_metadata=False):
            raise StoreError(
                f"The columns of table {table_name} are not those of its description.",
                "It was changed by another program: delete the table and index again.",
            )
        return description


@dataclass(frozen=True)
class StoredBatch:
    """Stored gradients of B examples or outputs. What was not asked for is empty: shape (B, 0), (0,), [] or {}.

    `kept` are the vectors in the type they are stored in, read-only views of Arrow memory; `losses` (B,) and
    `squared_norms` (B, G) float64; `attributes` B values per name, where "" stands for an attribute the example does
    not have; `targets` are those of outputs.
    """

    example_ids: Sequence[str]
    kept: StoredVectors
    code: VectorCode
    losses: NDArray[np.float64]
    squared_norms: NDArray[np.float64]
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    content_sha256: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """(B, D), without a look at the vectors."""
        rows, columns = self.kept.vectors.shape
        return rows, columns

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """(B, D) float32, widened when first asked for; where they are stored so, a view of Arrow memory."""
        return self.code.decode(self.kept)

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """The same vectors in order, a few rows at a time: who multiplies each at once finds it in the cache."""
        return self.code.pieces(self.kept)


def index_rows(
    description: IndexDescription,
    example_ids: Sequence[str],
    content_sha256: Sequence[str],
    vectors: NDArray[np.float32],
    losses: NDArray[np.float64],
    squared_norms: NDArray[np.float64],
    attributes: Mapping[str, Sequence[str | None]],
) -> pa.Table:
    """A checked batch of B rows under the schema of the index.

    Raises:
        DataError: a wrong shape or type, a value that is not finite, an id twice or empty, an attribute the index does
            not have.
    """
    require_unique("example", [(example_id,) for example_id in example_ids])
    schema, names = description.schema(), description.attribute_names
    unknown = sorted(set(attributes) - set(names))
    if unknown:
        raise DataError(
            f"Attribute {', '.join(unknown)} of a batch of examples is not among those of its index.",
            "Open the index with every attribute name of the dataset version.",
        )
    absent = [None] * len(example_ids)
    values = {name: [value or None for value in attributes.get(name, absent)] for name in names}
    as_text = ([value or "" for value in column] for column in values.values())
    keys = list(zip(example_ids, content_sha256, *as_text, strict=True))
    columns = [text_column("example id", example_ids), text_column("content digest", content_sha256)]
    measured_part = measured_fields(description.dimension, description.group_count, description.code)
    columns += measured_columns("example", keys, vectors, losses, squared_norms, measured_part, description.code)
    if values:
        texts = [text_column(f"attribute {name}", column) for name, column in values.items()]
        columns.append(pa.StructArray.from_arrays(texts, fields=list(description.attributes_type())))
    return pa.Table.from_arrays(columns, schema=schema)


def contents_of(table: pa.Table) -> dict[str, str]:
    """The content digest of each example by its id, in the order of the rows."""
    return dict(zip(table["example_id"].to_pylist(), table["content_sha256"].to_pylist(), strict=True))


def column_names(description: IndexDescription, columns: Collection[Column]) -> list[str]:
    """The columns of the table that `columns` need."""
    named = ["example_id", *(name for name in columns if name != "attributes" or description.attribute_names)]
    return [*named, "scales"] if description.code.type == "int8" and "vector" in columns else named


def stored_rows(batch: pa.RecordBatch, description: IndexDescription, columns: Collection[Column]) -> StoredBatch:
    """A batch read from an index, of which `columns` were asked for."""
    size, code, attribute_names = batch.num_rows, description.code, description.attribute_names
    return StoredBatch(
        example_ids=ArrowText(batch.column("example_id")),
        kept=code.stored(batch) if "vector" in columns else no_vectors(size),
        code=code if "vector" in columns else VectorCode(),
        losses=batch.column("loss").to_numpy() if "loss" in columns else np.empty(0),
        squared_norms=matrix(batch, "squared_norms") if "squared_norms" in columns else np.empty((size, 0)),
        attributes=_coded_attributes(batch, attribute_names) if "attributes" in columns else {},
        content_sha256=batch.column("content_sha256").to_pylist() if "content_sha256" in columns else [],
    )


def _coded_attributes(batch: pa.RecordBatch, names: Sequence[str]) -> dict[str, CodedText]:
    return {name: CodedText.of(pc.struct_field(batch.column("attributes"), [name])) for name in names}


def attribute_lists(batch: pa.RecordBatch, names: Sequence[str]) -> dict[str, list[str]]:
    """The attributes of a batch, by name; an absent one reads as ""."""
    if not names:
        return {}
    column = batch.column("attributes")
    return {name: pc.fill_null(pc.struct_field(column, [name]), "").to_pylist() for name in names}
