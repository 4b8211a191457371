"""What an adapter returns as training data, as examples by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradtrail.attribution.adapters.base import ModelAdapter, TrainingData
from gradtrail.attribution.adapters.faults import plain_faults
from gradtrail.errors import DataError
from gradtrail.nouns import Example

_ID, _INPUTS, _TARGET = "example_id", "inputs", "target"


def training_examples(adapter: ModelAdapter) -> TrainingData:
    """The adapter's training data; the rows of a table (pandas) as examples.

    A table has the columns `example_id` and `target`, and `inputs` or all of the adapter's `feature_names`; its other
    columns are attributes.

    Raises:
        DataError: it is no collection by position, or a table without these columns.
        ModelError: `training_data` fails.
    """
    with plain_faults():
        data: Any = adapter.training_data()
    if hasattr(data, "iloc") and hasattr(data, "columns"):
        return TableExamples(data, adapter.feature_names)
    if isinstance(data, dict) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise DataError(
            f"{type(adapter).__name__}.training_data returns a {type(data).__name__}: it has no examples by position.",
            "Return a list of gradtrail.Example, or any object with len and [position].",
        )
    return data  # type: ignore[no-any-return]  # each item is checked where it is read


class TableExamples:
    """The rows of a data frame as examples.

    Raises:
        DataError: naming the columns that the table lacks.
    """

    def __init__(self, table: Any, feature_names: Sequence[str]) -> None:
        self._table = table
        columns = [str(name) for name in table.columns]
        self._inputs = [_INPUTS] if _INPUTS in columns else list(feature_names)
        missing = [name for name in (_ID, _TARGET, *(self._inputs or [_INPUTS])) if name not in columns]
        if missing:
            raise DataError(
                f"The training data is a table without the column {missing[0]!r}; it has {', '.join(columns[:20])}.",
                "Name the columns example_id, target, and inputs or those of the adapter's feature_names; or return a "
                "list of gradtrail.Example.",
            )
        self._attributes = [name for name in columns if name not in (_ID, _TARGET, *self._inputs)]

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, position: int, /) -> Example:
        row = dict(zip(map(str, self._table.columns), self._table.iloc[position].tolist(), strict=True))
        inputs = row[_INPUTS] if self._inputs == [_INPUTS] else [row[name] for name in self._inputs]
        attributes = {name: str(row[name]) for name in self._attributes if row[name] is not None}
        return Example(str(row[_ID]), inputs, row[_TARGET], attributes)
