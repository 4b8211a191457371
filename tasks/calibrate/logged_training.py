"""Optimiser and learning rate of a training run, from the parameters that trainers log to MLflow.

Names are those of `transformers.Trainer` (`optim`, `learning_rate`), MLflow's autologging of Lightning and Keras
(`optimizer_name`, `lr`, `opt_name`, `opt_learning_rate`), scikit-learn (`solver`, `learning_rate_init`, `eta0`), and
what people give themselves, at any depth of a configuration (`model/optimizer/lr`, `optimizer__lr`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal, TypeVar, get_args

Optimiser = Literal["sgd", "adam", "adamw"]
OPTIMISERS: tuple[Optimiser, ...] = get_args(Optimiser)

_RATES = ("learning_rate", "lr", "learning_rate_init", "opt_learning_rate", "initial_lr", "init_lr", "base_lr", "eta0")
_OPTIMISERS = ("optimiser", "optimizer", "optim", "optimizer_name", "optimiser_name", "opt_name", "opt", "solver")
_CLASS_KEYS = ("_target_", "class_path", "name", "type")
_PARTS = re.compile(r"[./]|__(?!$)")
_WORDS = re.compile(r"[a-z0-9]+")
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class LoggedTraining:
    """What a run says of its training; None where it says nothing, or two things at once.

    Attributes:
        optimiser: `sgd`, `adam` or `adamw`.
        learning_rate: its rate; of an optimiser that is none of these it is left out, for it would mean another step.
        said: the parameters that were read, with their values.
    """

    optimiser: Optimiser | None
    learning_rate: float | None
    said: Mapping[str, str]


def logged_training(parameters: Mapping[str, str]) -> LoggedTraining:
    """Read optimiser and learning rate from the parameters of a run."""
    optimisers = _nearest({name: value for name, value in parameters.items() if _names_optimiser(name)})
    rates = _nearest({name: value for name, value in parameters.items() if _last(name) in _RATES and _rate(value)})
    optimiser = _one({_optimiser(value) for value in optimisers.values()})
    rate = _one({_rate(value) for value in rates.values()})
    if optimisers and optimiser is None:
        rate = None
    return LoggedTraining(optimiser, rate, {**optimisers, **rates})


def _nearest(found: Mapping[str, str]) -> dict[str, str]:
    """Those of the least depth: `lr` before `scheduler/lr`."""
    least = min((len(_parts(name)) for name in found), default=0)
    return {name: value for name, value in found.items() if len(_parts(name)) == least}


def _parts(name: str) -> list[str]:
    return [part for part in _PARTS.split(name.lower()) if part] or [name.lower()]


def _last(name: str) -> str:
    return _parts(name)[-1].replace("-", "_")


def _names_optimiser(name: str) -> bool:
    *before, last = _parts(name)
    return last in _OPTIMISERS or (last in _CLASS_KEYS and bool(before) and before[-1] in _OPTIMISERS)


def _optimiser(value: str) -> Optimiser | None:
    """`adamw_torch_fused`, `OptimizerNames.SGD`, `torch.optim.adam.Adam`, `Adam (Parameter Group 0 …` and the like."""
    head = value.split("(", maxsplit=1)[0] or value
    words = _WORDS.findall(head.lower().replace("_", " "))
    named = [each for each in OPTIMISERS if each in words]
    return named[-1] if named else None


def _rate(value: str) -> float | None:
    try:
        found = float(value)
    except ValueError:
        return None
    return found if isfinite(found) and found > 0 else None


def _one(found: set[_Value]) -> _Value | None:
    return next(iter(found)) if len(found) == 1 else None
