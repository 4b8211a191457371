"""Rows on their way into a table: Arrow with an explicit schema, in key order, checked before the ledger is opened."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gradtrail.errors import DataError
from gradtrail.lineage.chain.integrity import key_text, row_keys
from gradtrail.lineage.schema.nouns import records_of
from gradtrail.lineage.schema.tables import TABLES, Table

_CHUNK_ROWS = 50_000


@dataclass(frozen=True)
class Rows:
    """Rows for one table: no key twice, no null or non-finite number where none belongs, in key order."""

    table: Table
    data: pa.Table

    @property
    def count(self) -> int:
        """Number of rows."""
        return int(self.data.num_rows)


def rows_of(name: str, records: Iterable[Sequence[Any]]) -> Rows:
    """Rows of the table `name` from records in the order of its columns.

    Raises:
        DataError: a value of the wrong type, a missing or non-finite one, or a key that occurs twice.
    """
    table = TABLES[name]
    remaining = iter(records)
    chunks = []
    while chunk := list(islice(remaining, _CHUNK_ROWS)):
        chunks.append(_arrow(table, chunk))
    data = pa.concat_tables(chunks) if chunks else table.schema.empty_table()
    data = data.take(pc.sort_indices(data, sort_keys=[(column, "ascending") for column in table.key]))
    _refuse_duplicates(table, data)
    _refuse_non_finite(table, data)
    return Rows(table, data.combine_chunks())


def rows_from(
    name: str,
    nouns: Iterable[Any],
    *,
    each: Mapping[str, Sequence[Any]] | None = None,
    named: Mapping[str, str] | None = None,
    **same: Any,
) -> Rows:
    """Rows of the table `name` from nouns, whose fields and properties are its columns; JSON columns become text.

    Args:
        name: of the table; where nouns say nothing of its column `position`, their order does.
        nouns: all of one type.
        each: values by column, one a noun, of what the nouns do not say.
        named: fields by column, where they have another name.
        same: values by column that are the same in all rows.

    Raises:
        DataError: a value of the wrong type, a missing or non-finite one, or a key that occurs twice.
    """
    return rows_of(name, records_of(TABLES[name], nouns, same, each or {}, named or {}))


def _arrow(table: Table, chunk: Sequence[Sequence[Any]]) -> pa.Table:
    columns = zip(*chunk, strict=True)
    return pa.table(
        [_column(table, field, values) for field, values in zip(table.schema, columns, strict=True)],
        schema=table.schema,
    )


def _column(table: Table, field: pa.Field, values: Sequence[Any]) -> pa.Array:
    try:
        if pa.types.is_map(field.type):
            values = [None if value is None else sorted(value.items()) for value in values]
        column = pa.array(values, field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(
            f"A value of {table.name}.{field.name} does not fit its type {field.type}: {error}.",
            "Check what the adapter or the source delivers for it.",
        ) from error
    if (not field.nullable and column.null_count) or _has_empty_items(column):
        raise DataError(
            f"A value of {table.name}.{field.name} is missing.", "Every field but the optional ones needs a value."
        )
    return column


def _has_empty_items(column: pa.Array) -> bool:
    if pa.types.is_map(column.type):
        return bool(column.items.null_count)
    return bool(pa.types.is_list(column.type) and column.values.null_count)


def _refuse_duplicates(table: Table, data: pa.Table) -> None:
    # In key order equal keys are neighbours.
    same: pa.ChunkedArray | pa.BooleanArray | None = None
    for name in table.key:
        column = data.column(name)
        equal = pc.equal(column[1:], column[:-1])
        same = equal if same is None else pc.and_(same, equal)
    if same is not None and (place := pc.index(same, True).as_py()) >= 0:
        key = row_keys(table, data.slice(place, 1))[0]
        raise DataError(
            f"{key_text(key)} occurs twice among the rows for {table.name} ({', '.join(table.key)}).",
            "Give every one its own id, or remove the duplicate.",
        )


def _refuse_non_finite(table: Table, data: pa.Table) -> None:
    for field in table.schema:
        if pa.types.is_map(field.type) and pa.types.is_floating(field.type.item_type):
            finite = [
                all(math.isfinite(number) for _, number in pairs or ()) for pairs in data.column(field.name).to_pylist()
            ]
        elif pa.types.is_floating(field.type):
            finite = pc.fill_null(pc.is_finite(data.column(field.name)), True)
            if pc.all(finite, min_count=0).as_py():
                continue
            finite = finite.to_pylist()
        else:
            continue
        if not all(finite):
            key = row_keys(table, data.slice(finite.index(False), 1))[0]
            raise DataError(
                f"{table.name}.{field.name} of {key_text(key)} is not a finite number.",
                "A loss or score that is not finite means broken weights or data: quarantine it before recording.",
            )
