"""Between nouns and columns: a column holds the field or property of its name, of a noun or of one inside that.

So a new column is said in two places, in a numbered file of `schema/` and as a field of its noun.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, get_origin, get_type_hints

from gradtrail.lineage.schema.json_columns import json_text

if TYPE_CHECKING:
    from gradtrail.lineage.schema.tables import Table

Noun = TypeVar("Noun")


def select(noun: type, rest: str, **expressions: str) -> str:
    """A query for the columns of a noun; `rest` begins with FROM, expressions stand in for columns of their names."""
    columns = [expressions.get(name, name) for name in _leaves(noun)]
    return f"SELECT {', '.join(columns)} {rest}"


def noun_of(noun: type[Noun], row: Sequence[Any]) -> Noun:
    """A noun from a row of its `select`."""
    make: Callable[[Iterator[Any]], Noun] = _maker(noun)  # type: ignore[arg-type]  # types are hashable
    return make(iter(row))


def records_of(
    table: Table,
    nouns: Iterable[Any],
    same: Mapping[str, Any],
    each: Mapping[str, Sequence[Any]],
    named: Mapping[str, str],
) -> Iterator[tuple[Any, ...]]:
    """A record of a table for each noun, in the order of its columns; see `rows_from`."""
    read: list[Callable[[int, Any], Any]] | None = None
    for position, noun in enumerate(nouns):
        if read is None:
            read = [_reader(table, column, type(noun), same, each, named) for column in table.schema.names]
        yield tuple(value(position, noun) for value in read)


def _reader(
    table: Table,
    column: str,
    noun: type,
    same: Mapping[str, Any],
    each: Mapping[str, Sequence[Any]],
    named: Mapping[str, str],
) -> Callable[[int, Any], Any]:
    """What gives the value of a column from the place of a noun and the noun."""
    path = _path(noun, named.get(column, column))
    read: Callable[[int, Any], Any]
    if column in same:
        read = lambda _, __: same[column]  # noqa: E731
    elif column in each:
        read = lambda position, _: each[column][position]  # noqa: E731
    elif path:
        of_noun = attrgetter(path)
        read = lambda _, noun: of_noun(noun)  # noqa: E731
    elif column == "position":
        read = lambda position, _: position  # noqa: E731
    else:
        raise TypeError(f"{noun.__name__} has no field for the column {column} of {table.name}")
    value: Callable[[int, Any], Any] = read
    return (lambda position, noun: json_text(value(position, noun), column)) if column in table.json else value


def _path(noun: type, name: str) -> str:
    """Where a noun, or one inside it, has that name; empty where none has."""
    return _leaves(noun).get(name) or (name if hasattr(noun, name) else "")


@cache
def _leaves(noun: type) -> Mapping[str, str]:
    """The names of all fields, those of nouns inside in their place, with the way to each."""
    hints = get_type_hints(noun)
    found: dict[str, str] = {}
    for field in fields(noun):
        if is_dataclass(hints[field.name]):
            inside = _leaves(hints[field.name])
            found |= {name: f"{field.name}.{way}" for name, way in inside.items()}
        else:
            found[field.name] = field.name
    return found


@cache
def _maker(noun: type[Any]) -> Callable[[Iterator[Any]], Any]:
    hints = get_type_hints(noun)
    take = [_taker(hints[field.name]) for field in fields(noun)]
    if all(each is next for each in take):
        return lambda row: noun(*row)
    return lambda row: noun(*(each(row) for each in take))


def _taker(hint: Any) -> Callable[[Iterator[Any]], Any]:
    if is_dataclass(hint):
        return _maker(hint)  # type: ignore[arg-type]  # a type, as hints are
    origin = get_origin(hint)
    if origin is tuple:
        return lambda row: tuple(next(row))
    if origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return lambda row: _mapping(next(row))
    return next


def _mapping(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value
