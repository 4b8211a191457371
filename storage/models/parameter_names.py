"""What one parameter is called in a file and in a model: wrappers and older spellings change names, not weights."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from gradtrail.errors import CheckpointError
from gradtrail.storage.gradients.measured import first_few

_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Modules that torch.compile, (Distributed)DataParallel, FSDP and activation checkpointing put around another one."""
_NORMED = re.compile(r"(?P<before>^|\.)parametrizations\.(?P<name>[^.]+)\.original(?P<number>[01])$")
_NORM_SUFFIXES = ("_g", "_v")
"""How weight_norm called magnitude and direction before it became a parametrization."""


def plain_name(name: str) -> str:
    """The name without wrappers, and with weight_norm's parameters spelled `weight_g` and `weight_v`."""
    kept = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    return _NORMED.sub(lambda found: f"{found['before']}{found['name']}{_NORM_SUFFIXES[int(found['number'])]}", kept)


def without_wrappers(name: str) -> str:
    """The name without the wrappers that stand before it."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _WRAPPERS:
        del parts[0]
    return ".".join(parts)


def names_in_model(names: Collection[str], expected: Collection[str], *, label: str) -> dict[str, str]:
    """For each name of a file that a model knows, the model's own; names that it does not know are left out.

    A name that the model has is taken as it is, any other by its plain name, where one parameter alone has that.

    Raises:
        CheckpointError: two names of the file mean the same parameter.
    """
    by_plain_name: dict[str, list[str]] = defaultdict(list)
    for own in expected:
        by_plain_name[plain_name(own)].append(own)
    found = {}
    for name in names:
        candidates = [name] if name in expected else by_plain_name.get(plain_name(name), [])
        if len(candidates) == 1:
            found[name] = candidates[0]
    refuse_collisions(found, label=label)
    return found


def refuse_collisions(renamed: Mapping[str, str], *, label: str) -> None:
    """Refuse names of a file of which two mean one parameter of the model.

    Raises:
        CheckpointError: it names them.
    """
    by_own: dict[str, list[str]] = defaultdict(list)
    for name, own in renamed.items():
        by_own[own].append(name)
    double = [f"{own} (as {' and '.join(sorted(names))})" for own, names in by_own.items() if len(names) > 1]
    if double:
        raise CheckpointError(
            f"The weights {label} hold a tensor twice, under names that differ by a wrapper alone: "
            f"{first_few(double)}.",
            "Save the state_dict of the model that serves, and that alone.",
        )


def sub_modules_named(names: Iterable[str], expected: Collection[str]) -> list[str]:
    """The prefixes under which a file holds every expected name, as it does where the model is a part of a larger one.

    Each ends with a dot. One that lies within another (`model.` and `model.inner.`) is there as well.
    """
    plain = {plain_name(name) for name in names}
    wanted = {plain_name(own) for own in expected}
    if not wanted:
        return []
    longest = max(wanted, key=len)
    prefixes = sorted(name.removesuffix(longest) for name in plain if name.endswith(f".{longest}"))
    return [prefix for prefix in prefixes if all(prefix + own in plain for own in wanted)]
