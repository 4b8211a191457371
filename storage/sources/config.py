"""Where outputs come from, as `[[sources]]` of the settings describes it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from gradtrail.errors import UsageError
from gradtrail.secret_addresses import without_secrets

BUILT_IN_KINDS = ("inbox", "sql", "traces")
Sampling = Literal["all", "first", "random", "stratified", "lowest_confidence"]

DEFAULT_SOURCE = "inbox"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_FROM_ENVIRONMENT = "env:"
_TRACE_ROOTS = ("request", "response", "tags", "metadata")
_COUNTED = ("first", "stratified", "lowest_confidence")
# What only some kinds understand; everything else is for all of them.
_ONLY_FOR: Mapping[str, tuple[str, ...]] = {
    "location": ("inbox", "sql"),
    "table": ("sql",),
    "query": ("sql",),
    "time_column": ("sql",),
    "id_column": ("sql",),
    "time_zone": ("sql",),
    "json_fields": ("sql",),
    "overlap_hours": ("sql",),
    "experiments": ("traces",),
}


class SourceConfigError(UsageError, ValueError):
    """A source that cannot be meant; a ValueError too, so that settings name the table it stands in."""


@dataclass(frozen=True)
class SourceConfig:
    """One source of outputs; plain values, so that it is a parameter of a flow.

    Attributes:
        name: its name; outputs that name no source of their own carry it, and ids begin with it.
        kind: `inbox` (folder or object-store prefix of Parquet and JSON Lines), `sql`, `traces` (MLflow), or
            `module:Class` of a source of your own.
        location: folder or filesystem URI, empty for the inbox of the home folder; or SQLAlchemy URL. `env:NAME` reads
            it from a variable of the environment, so that no password is kept with the settings.
        table: the SQL table, `schema.name` where it has one; or `query` instead.
        query: a SELECT that keeps to rows after the bound parameter `:since`.
        time_column: when an output was made; it orders the reading.
        id_column: what tells outputs apart; without one, a record is told by its content.
        time_zone: `UTC` where times in the database have no zone and mean UTC; else such records are refused.
        json_fields: text columns that hold JSON.
        experiments: names of the MLflow experiments whose traces are read.
        fields: field of a record by where it is found: a column, or for traces `request.KEY`, `response.KEY`,
            `tags.TAG` or `metadata.KEY`.
        options: what a source of your own is told besides.
        constants: fields that are the same for every record, for example model and version.
        overlap_hours: how far before the watermark each run reads again, for records that arrive late.
        clock_skew_minutes: how far in the future a record may say it was made; one from beyond waits for its time.
        sampling: which of the new records of a run are audited.
        sample_size: how many: `first` by time, for each label where `stratified`, or of `lowest_confidence`.
        sample_share: share of the outputs that `random` takes, 0 to 1.
        sample_seed: another seed takes another random share.
        most_per_run: outputs recorded in one run at most, 0 for no limit; the rest waits for the next.

    Raises:
        SourceConfigError: values that do not go together; the message names them.
    """

    # pydantic reads this where settings or flow parameters are checked: an unknown key is an error and not ignored.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    name: str
    kind: str
    location: str = ""
    table: str = ""
    query: str = ""
    time_column: str = ""
    id_column: str = ""
    time_zone: Literal["", "UTC"] = ""
    json_fields: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str | int] = field(default_factory=dict)
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    overlap_hours: float = 24.0
    clock_skew_minutes: float = 60.0
    sampling: Sampling = "all"
    sample_size: int = 0
    sample_share: float = 1.0
    sample_seed: int = 0
    most_per_run: int = 0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            self._refuse(f"is called {self.name!r}", "Use small letters, digits, - and _, at most 64.")
        for name, kinds in _ONLY_FOR.items():
            given = getattr(self, name)
            if not self.is_foreign and self.kind not in kinds and given and given != _default(name):
                self._refuse(f"of kind {self.kind} has {name}", f"It belongs to sources of kind {' or '.join(kinds)}.")
        self._check_kind()
        self._check_sampling()
        for name in ("overlap_hours", "clock_skew_minutes", "sample_size", "most_per_run"):
            if getattr(self, name) < 0:
                self._refuse(f"has {name} = {getattr(self, name)}", "Give 0 or more.")
        if both := sorted(self.fields.keys() & self.constants.keys()):
            self._refuse(f"gives {both[0]!r} as a field and as a constant", "Keep one of them.")

    @property
    def is_foreign(self) -> bool:
        """Whether its kind is code of another package."""
        return ":" in self.kind

    @property
    def is_home(self) -> bool:
        """Whether it describes the inbox of the home folder."""
        return self.kind == "inbox" and not self.location

    def resolved_location(self) -> str:
        """The location, read from the environment where it says so.

        Raises:
            UsageError: the variable is not set.
        """
        if not self.location.startswith(_FROM_ENVIRONMENT):
            return self.location
        variable = self.location.removeprefix(_FROM_ENVIRONMENT)
        if value := os.environ.get(variable):
            return value
        raise UsageError(
            f"The source {self.name} is located by the variable {variable}, which is not set.",
            f"Set {variable} where the audits run.",
        )

    def shown_location(self) -> str:
        """Where it is, for people: never a password, and never what a variable holds."""
        if self.kind == "traces":
            return ", ".join(self.experiments)
        return without_secrets(self.location)

    def _check_kind(self) -> None:
        if self.kind not in BUILT_IN_KINDS and not self.is_foreign:
            self._refuse(f"has kind {self.kind!r}", f"Choose {', '.join(BUILT_IN_KINDS)}, or module:Class of your own.")
        if self.options and not self.is_foreign:
            self._refuse(f"of kind {self.kind} has options", "They belong to a source of your own, module:Class.")
        if self.kind == "sql":
            if not self.location:
                self._refuse("has no location", "Give a SQLAlchemy URL, or env:NAME for the variable that holds it.")
            if bool(self.table) == bool(self.query):
                self._refuse("needs a table or a query", "Give one of the two.")
            if not self.time_column:
                self._refuse("has no time_column", "Name the column that says when an output was made.")
            if self.query and ":since" not in self.query:
                self._refuse("has a query without :since", "Add a condition such as WHERE made_at >= :since.")
        if self.kind == "traces" and not self.experiments:
            self._refuse("has no experiments", "Name the MLflow experiments whose traces are read.")
        for field_name, path in self.fields.items() if self.kind == "traces" else ():
            if path.partition(".")[0] not in _TRACE_ROOTS:
                self._refuse(f"takes {field_name!r} from {path!r}", f"Begin with {', '.join(_TRACE_ROOTS)}.")

    def _check_sampling(self) -> None:
        counted = self.sampling in _COUNTED
        if counted != bool(self.sample_size):
            remedy = "Give how many." if counted else f"It belongs to sampling {', '.join(_COUNTED)}."
            self._refuse(f"has sampling {self.sampling!r} and sample_size = {self.sample_size}", remedy)
        if not 0 <= self.sample_share <= 1 or (self.sample_share < 1 and self.sampling != "random"):
            self._refuse(
                f"has sampling {self.sampling!r} and sample_share = {self.sample_share}",
                "Give sampling = 'random' and a share from 0 to 1.",
            )

    def _refuse(self, what: str, remedy: str) -> None:
        raise SourceConfigError(f"The source {self.name!r} {what}.", remedy)


def _default(name: str) -> Any:
    return next(each.default for each in fields(SourceConfig) if each.name == name)
