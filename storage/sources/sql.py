"""A SQL table or query as a source, through SQLAlchemy: bound parameters, streamed by the server, in order of time."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import (
    ArgumentError,
    InterfaceError,
    NoSuchModuleError,
    NoSuchTableError,
    OperationalError,
    SQLAlchemyError,
)

from gradtrail.digests import sha256_bytes, short
from gradtrail.errors import DataError, StoreError, UsageError
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.storage.sources.files import renamed
from gradtrail.storage.sources.payload_json import RECORD_BYTES_LIMIT
from gradtrail.storage.sources.plain_values import parsed_time, plain_value
from gradtrail.storage.sources.rows import Arrival, Settled

_ROWS_AT_ONCE = 32
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class SqlSource:
    """The rows of one table or query.

    Raises:
        UsageError: the address is none, or its driver is not installed.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        location = config.resolved_location()
        try:
            self._engine = sa.create_engine(location, pool_pre_ping=True)
        except (ArgumentError, NoSuchModuleError, ImportError) as fault:
            raise UsageError(
                f"The source {config.name} has an address that cannot be used: {fault}.",
                "Write it as postgresql+psycopg://user@host/database (pip install 'gradtrail[postgres]') or sqlite:///file.",
            ) from fault
        self.address = self._engine.url.render_as_string(hide_password=True)

    def arrivals(self, since: datetime | None, marks: Mapping[str, Any]) -> Iterator[Arrival]:  # noqa: ARG002 - files have marks
        """Rows from `since` on by time and id, and rows without a time, which are refused later.

        Raises:
            UsageError: there is no such table or column, or the query cannot be run.
            StoreError: the database cannot be reached, or refuses.
        """
        try:
            with closing(self._engine.connect()) as connection:
                statement = self._statement(connection, since)
                streaming = connection.execution_options(stream_results=True, max_row_buffer=_ROWS_AT_ONCE)
                result = streaming.execute(statement).yield_per(_ROWS_AT_ONCE)
                for row in result.mappings():
                    yield self._arrival(dict(row))
        except (OperationalError, InterfaceError) as fault:
            raise StoreError(
                f"The source {self.config.name} at {self.address} cannot be read: {_first_line(fault)}.",
                "Check that the database runs and lets this user in; the next run tries again.",
            ) from fault
        except SQLAlchemyError as fault:
            raise StoreError(
                f"The source {self.config.name} at {self.address} refuses to be read: {_first_line(fault)}.",
                "Give this user the right to read it, or correct the settings; the next run tries again.",
            ) from fault
        finally:
            self._engine.dispose()

    def settle(self, settled: Collection[Settled]) -> None:
        """Rows are never written to."""

    def _statement(self, connection: sa.Connection, since: datetime | None) -> sa.Select[Any]:
        config = self.config
        outputs, time_type = self._table(connection) if config.table else self._query(connection, since)
        time = outputs.c[config.time_column]
        order = [time, outputs.c[config.id_column]] if config.id_column else [time]
        statement = sa.select(outputs).order_by(*order)
        if config.table and since is not None:
            statement = statement.where(sa.or_(time >= _bound(since, time_type), time.is_(None)))
        return statement

    def _table(self, connection: sa.Connection) -> tuple[sa.FromClause, sa.types.TypeEngine[Any] | None]:
        schema, _, name = self.config.table.rpartition(".")
        try:
            columns = sa.inspect(connection).get_columns(name, schema=schema or None)
        except NoSuchTableError as fault:
            raise UsageError(
                f"There is no table {self.config.table} at {self.address}.", "Correct `table` in the settings."
            ) from fault
        types = {column["name"]: column["type"] for column in columns}
        self._require_columns(list(types))
        # Without types, so that values come as the driver gives them: sqlite's texts would not parse as its dates.
        table = sa.table(name, *(sa.column(column) for column in types), schema=schema or None)
        is_text = connection.dialect.name == "sqlite"
        return table, None if is_text and _is_time(types[self.config.time_column]) else types[self.config.time_column]

    def _query(self, connection: sa.Connection, since: datetime | None) -> tuple[sa.FromClause, None]:
        moment = since or _BEGINNING
        bound = moment.isoformat() if connection.dialect.name == "sqlite" else moment
        query = sa.text(self.config.query).bindparams(since=bound)
        try:
            names = list(connection.execute(sa.select(sa.text("*")).select_from(_named(query, [])).limit(0)).keys())
        except (sa.exc.ProgrammingError, OperationalError) as fault:
            if isinstance(fault, OperationalError) and connection.dialect.name != "sqlite":
                raise
            # Not chained: what the query says is wrong is no database that is away.
            raise UsageError(
                f"The query of the source {self.config.name} cannot be run: {_first_line(fault)}.",
                "Try it in the database; it is wrapped as a sub-query, so it must not end in a semicolon.",
            ) from None
        self._require_columns(names)
        return _named(query, names), None

    def _require_columns(self, found: Sequence[str]) -> None:
        config = self.config
        needed = [config.time_column, config.id_column, *config.fields.values(), *config.json_fields]
        for name in needed:
            if name and name not in found:
                raise UsageError(
                    f"The source {config.name} has no column {name!r}; it has {', '.join(found)}.",
                    "Correct the column's name in the settings.",
                )

    def _arrival(self, row: dict[str, Any]) -> Arrival:
        config = self.config
        identity = row.get(config.id_column) if config.id_column else None
        name = (
            str(identity) if identity is not None else f"row {short(sha256_bytes(repr(sorted(row.items())).encode()))}"
        )
        place = f"{config.name}, {config.id_column or 'row'} {name.removeprefix('row ')}"
        try:
            record = self._record(row, place)
        except DataError as fault:
            return Arrival(config.name, place, name, None, fault)
        return Arrival(config.name, place, name, record)

    def _record(self, row: dict[str, Any], place: str) -> dict[str, Any]:
        config = self.config
        for column, value in row.items():
            if isinstance(value, str | bytes) and len(value) > RECORD_BYTES_LIMIT:
                raise DataError(f"{place}: the column {column!r} is larger than 16 MB.", "Split or shorten it.")
        plain = {column: self._plain(value) for column, value in row.items()}
        for column in config.json_fields:
            if isinstance(plain[column], str):
                try:
                    plain[column] = json.loads(plain[column])
                except (ValueError, RecursionError) as fault:
                    raise DataError(f"{place}: the column {column!r} is not JSON: {fault}.", "Mend the row.") from fault
        times = {"time": config.time_column} if "time" not in config.fields else {}
        ids = {"record_id": config.id_column} if config.id_column and "record_id" not in config.fields else {}
        record = renamed(plain, {**times, **ids, **config.fields}, config.constants)
        if config.time_zone and isinstance(record.get("time"), str | datetime):
            record["time"] = _with_zone(record["time"])
        return record

    def _plain(self, value: Any) -> Any:
        if isinstance(value, datetime) and self.config.time_zone:
            return _with_zone(value)
        return plain_value(value)


def _named(query: sa.TextClause, names: Sequence[str]) -> sa.Subquery:
    return query.columns(*(sa.column(name) for name in names)).subquery("outputs")


def _is_time(kind: sa.types.TypeEngine[Any]) -> bool:
    return isinstance(kind, sa.DateTime)


def _bound(since: datetime, kind: sa.types.TypeEngine[Any] | None) -> Any:
    """`since` as what the time column compares with; texts by their date, one day earlier, whatever form they have."""
    if isinstance(kind, sa.DateTime):
        return since if kind.timezone else since.replace(tzinfo=None)
    if isinstance(kind, sa.Integer | sa.Numeric):
        return since.timestamp()
    return (since - timedelta(days=1)).date().isoformat()


def _with_zone(value: str | datetime) -> str | datetime:
    try:
        moment = parsed_time(value) if isinstance(value, str) else value
    except ValueError:
        return value  # understanding the record says what is wrong with it
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _first_line(fault: Exception) -> str:
    cause = getattr(fault, "orig", None) or fault
    return str(cause).strip().split("\n", 1)[0].rstrip(".")
