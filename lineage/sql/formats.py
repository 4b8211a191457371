"""An answer of the ledger as bytes that other programs read: CSV, JSON, Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date, datetime
from io import BytesIO
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

AnswerFormat = Literal["csv", "json", "parquet"]


def encode_answer(table: pa.Table, form: AnswerFormat) -> bytes:
    """The rows of a query.

    CSV: a header line; lists, structures and maps as JSON text. JSON: an array of objects, maps as objects, times in
    ISO 8601, bytes as hexadecimal text. Parquet: the types of the query.
    """
    return _ENCODERS[form](table)


def json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows as values that JSON holds."""
    columns = [
        [_plain(value, field.type) for value in table.column(place).to_pylist()]
        for place, field in enumerate(table.schema)
    ]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _csv(table: pa.Table) -> bytes:
    columns = []
    for place, field in enumerate(table.schema):
        column = table.column(place)
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type):
            texts = [
                None
                if value is None
                else value.hex()
                if isinstance(value, bytes)
                else json.dumps(_plain(value, field.type), ensure_ascii=False)
                for value in column.to_pylist()
            ]
            column = pa.chunked_array([pa.array(texts, pa.string())])
        columns.append(column)
    stream = BytesIO()
    pyarrow.csv.write_csv(pa.table(columns, names=table.column_names), stream)
    return stream.getvalue()


def _json(table: pa.Table) -> bytes:
    return (json.dumps(json_rows(table), ensure_ascii=False, indent=2) + "\n").encode()


def _parquet(table: pa.Table) -> bytes:
    stream = BytesIO()
    pyarrow.parquet.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def _plain(value: Any, kind: pa.DataType) -> Any:
    plain: Any
    if value is None or isinstance(value, bool | int | float | str):
        plain = value
    elif pa.types.is_map(kind):
        plain = {str(key): _plain(item, kind.item_type) for key, item in value}
    elif pa.types.is_struct(kind):
        plain = {field.name: _plain(value[field.name], field.type) for field in kind}
    elif isinstance(value, list):
        plain = [_plain(item, kind.value_type) for item in value]
    elif isinstance(value, datetime | date):
        plain = value.isoformat()
    else:
        plain = value.hex() if isinstance(value, bytes) else str(value)
    return plain


_ENCODERS: Mapping[AnswerFormat, Callable[[pa.Table], bytes]] = {"csv": _csv, "json": _json, "parquet": _parquet}
