"""What the settings say of a model to look after; imports nothing heavy, for every command reads the settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from gradtrail.errors import UsageError
from gradtrail.nouns import Target

_OPTIMISERS = ("sgd", "adam", "adamw")
_CRON_NAMES = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")
_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec"
_WEEKDAYS = "sun mon tue wed thu fri sat"
# Bounds and names of minute, hour, day of month, month, day of week.
_CRON_FIELDS = ((0, 59, ""), (0, 23, ""), (1, 31, "l"), (1, 12, _MONTHS), (0, 7, _WEEKDAYS))
_CRON_PART = re.compile(r"(?:[*?]|(\w+)(?:-(\w+))?)(?:/[1-9]\d*)?(?:#[1-5])?")


class ScheduleError(UsageError, ValueError):
    """A schedule that cannot be meant; a ValueError too, so that settings name the table it stands in."""


class TrainingError(UsageError, ValueError):
    """Further training that cannot be done; a ValueError too, so that settings name the table it stands in."""


@dataclass(frozen=True)
class WatchedModel:
    """A model that gradtrail looks after, as `[[models]]` of the settings describes it.

    Attributes:
        reference: `NAME@alias` follows the alias; `NAME` takes every new version.
        adapter: `module:Class` for versions that were registered without one.
        calibrate: measure the fidelity of new versions too.
        audit: cron of the audits.
        time_zone: the zone of that cron, by its IANA name.
        target: what audits explain.
        method: attribution method; `auto` is what the calibration chose.
        optimiser: of calibrations: `sgd`, `adam` or `adamw`; empty takes what the training run logged, else `sgd`.
        learning_rate: of calibrations; 0 takes what the run logged, or searches for one.
        batch_size: of calibrations; 0 takes 64, or all examples where there are fewer.
        steps: amounts of further training of calibrations, ascending.

    Raises:
        ScheduleError: `audit` is no cron, or there is no such time zone.
        TrainingError: what calibrations should do cannot be done.
    """

    # pydantic reads this where settings or flow parameters are checked: an unknown key is an error and not ignored.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    reference: str
    adapter: str = ""
    calibrate: bool = True
    audit: str = "*/15 * * * *"
    time_zone: str = "UTC"
    target: Target = "emitted"
    method: str = "auto"
    optimiser: str = ""
    learning_rate: float = 0.0
    batch_size: int = 0
    steps: tuple[int, ...] = (10, 50, 200)

    def __post_init__(self) -> None:
        if self.optimiser not in ("", *_OPTIMISERS) or not 0 <= self.learning_rate < float("inf"):
            raise TrainingError(
                f"Calibrations of {self.reference} by {self.optimiser or 'sgd'} at {self.learning_rate:g}.",
                f"Choose one of {', '.join(_OPTIMISERS)}, and a positive learning_rate; or leave both out.",
            )
        if self.batch_size < 0 or not self.steps or self.steps[0] < 1 or list(self.steps) != sorted(set(self.steps)):
            raise TrainingError(
                f"Calibrations of {self.reference} for {list(self.steps)} steps with batches of {self.batch_size}.",
                "Give ascending numbers such as steps = [10, 50, 200], and a positive batch_size; or leave both out.",
            )
        if not is_cron(self.audit):
            raise ScheduleError(
                f"The schedule {self.audit!r} of {self.reference} is no cron.",
                'Give minute, hour, day, month and day of week, such as audit = "*/15 * * * *", or a name: '
                f"{', '.join(_CRON_NAMES)}.",
            )
        if not _is_zone(self.time_zone):
            raise ScheduleError(
                f"The time zone {self.time_zone!r} of {self.reference} is none.",
                'Give its IANA name, such as time_zone = "Europe/Berlin", or leave it out for UTC.',
            )


def _is_zone(name: str) -> bool:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return bool(ZoneInfo(name))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False


def is_cron(text: str) -> bool:
    """Whether a text is a cron of five fields, or a name for one; written here, for Prefect's check loads Prefect."""
    if text.strip().lower() in _CRON_NAMES:
        return True
    given = text.lower().split()
    return len(given) == len(_CRON_FIELDS) and all(
        _is_cron_field(each, least, most, names.split())
        for each, (least, most, names) in zip(given, _CRON_FIELDS, strict=True)
    )


def _is_cron_field(text: str, least: int, most: int, names: list[str]) -> bool:
    parts = [_CRON_PART.fullmatch(part) for part in text.split(",")]
    ends = [end for part in parts if part for end in part.groups() if end]
    return all(parts) and all(end in names or (end.isdecimal() and least <= int(end) <= most) for end in ends)
