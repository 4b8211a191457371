"""Weights and the architecture they are for: compared tensor by tensor before anything is loaded or written."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _LazyConvXdMixin
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from gradtrail.errors import CheckpointError
from gradtrail.storage.gradients.measured import first_few
from gradtrail.storage.models.frozen_bases import adapter_names, base_sha256
from gradtrail.storage.models.parameter_names import (
    names_in_model,
    plain_name,
    refuse_collisions,
    sub_modules_named,
    without_wrappers,
)

_POSITIONS = "position_ids"
_AVERAGED = "n_averaged"
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class FittedWeights:
    """Weights under the names that a model has for them.

    Attributes:
        tensors: what the file holds of the model, one name for each tensor of the file.
        base_sha256: digest of what the model itself brings, where the file holds an adapter alone; else empty.
        set_aside: names in the file that are no part of the model, and change nothing that it computes.
    """

    tensors: Mapping[str, Tensor]
    base_sha256: str = ""
    set_aside: tuple[str, ...] = ()


def load_into(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    name: str,
    within_larger: bool = False,
    expected_base_sha256: str = "",
) -> FittedWeights:
    """Load `weights` into `model`, strictly: every tensor it has, in its shape, and nothing else.

    What torch's own strict load takes is taken, and names may differ where the architecture does not:

    - wrappers (`module.`, `_orig_mod.`, …) count for nothing, wherever they stand; both spellings of weight_norm do;
    - a name may be left out where its tensor is tied to one that is there, or counts a norm's batches;
    - buffers that the model makes itself, equal in the file, are set aside, and so are `position_ids` that count;
    - a lazy module gets its shapes from the file;
    - all names may lie under the name of a sub-module (`model.`);
    - an adapter of peft may come without its frozen base, which is then the one that the model was built with.

    A type that the model's own holds exactly (float16 into float32) is widened.

    Args:
        name: what the weights are called in messages.
        within_larger: the file is of a larger module (a LightningModule), of which the model is the one part that fits.
        expected_base_sha256: digest of the base that an adapter was taken in with, if it came alone.

    Returns:
        What was loaded, under the model's own names.

    Raises:
        CheckpointError: another architecture, a lossy type, tied tensors that differ, values that are not finite, two
            names for one tensor, another base; the message names the first few, and the model is as it was.
    """
    fitted = fit_weights(
        model, weights, name=name, within_larger=within_larger, expected_base_sha256=expected_base_sha256
    )
    expected = _tensors_of(model)
    ties = _tied_names(expected)
    given = dict(fitted.tensors)
    for own in expected:
        if own not in given and (tied := next((each for each in ties[own] if each in given), None)) is not None:
            given[own] = given[tied]
    for own in expected.keys() - given.keys():
        if fitted.base_sha256 or _brings_itself(own, model):
            given[own] = expected[own].detach()
    try:
        model.load_state_dict(given, strict=True)
    except RuntimeError as fault:
        raise _of_another_architecture(name, str(fault)) from fault
    for module in model.modules():
        if isinstance(module, LazyModuleMixin) and not _is_foreign(type(module).__module__):
            _end_laziness(module)
    return fitted


def fit_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    name: str,
    within_larger: bool = False,
    expected_base_sha256: str = "",
) -> FittedWeights:
    """Find each tensor's place in the model, as `load_into` does, and load nothing; arguments and errors as there."""
    expected = _tensors_of(model)
    places = _places(model, weights, expected, name=name, within_larger=within_larger)
    set_aside = _set_aside(model, weights, places)
    tensors = {own: weights[each] for each, own in places.own_names.items()}
    unknown = [each for each in weights if each not in places.own_names and each not in set_aside]
    problems = _architecture_problems(model, tensors, unknown, expected, whole=not places.alone)
    if problems:
        raise _of_another_architecture(name, " ".join(problems))
    if _translates(model):
        tensors |= {without_wrappers(each): weights[each] for each in unknown}
    damaged = [own for own, value in tensors.items() if not (_is_finite(value) or _is_built_so(own, value, expected))]
    if damaged:
        raise CheckpointError(
            f"The weights {name} are not finite (NaN or infinity) in {first_few(damaged)}.",
            "The training diverged or the file is damaged: register an earlier checkpoint.",
        )
    base = base_sha256({own: expected[own] for own in _absent(expected, tensors)}) if places.alone else ""
    if expected_base_sha256 and base != expected_base_sha256:
        raise CheckpointError(
            f"The weights {name} are an adapter for the base {expected_base_sha256[:12]}; build_model gives the base "
            f"{base[:12] or 'that the file holds itself'}.",
            "Let build_model give the base that the adapter was registered with: the same weights each time.",
        )
    return FittedWeights(tensors, base, tuple(set_aside))


@dataclass(frozen=True)
class _Places:
    """The model's name for each name of the file, the prefix of all of them, and whether it is an adapter alone."""

    own_names: Mapping[str, str]
    prefix: str = ""
    alone: bool = False


def _places(
    model: nn.Module, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, name: str, within_larger: bool
) -> _Places:
    found = names_in_model(weights, expected, label=name)
    if len(found) == len(weights) and not _is_adapter_alone(found, expected):
        return _Places(found)
    if adapter := adapter_names(model, expected):
        taken = {each: adapter[plain] for each in weights if (plain := plain_name(each)) in adapter} | found
        if len(taken) == len(weights):
            refuse_collisions(taken, label=name)
            return _Places(taken, alone=True)
    prefix = _sub_module(weights, expected, found.values(), name=name, within_larger=within_larger)
    if prefix:
        inner = {plain.removeprefix(prefix): each for each in weights if (plain := plain_name(each)).startswith(prefix)}
        own_names = names_in_model(inner, expected, label=name)
        return _Places({inner[each]: own for each, own in own_names.items()}, prefix)
    return _Places(found)


def _sub_module(
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    found: Collection[str],
    *,
    name: str,
    within_larger: bool,
) -> str:
    """The prefix under which the file holds the whole model; empty where names fit as they are, or there is none."""
    needed = [own for own in expected if not own.endswith(_COUNTER)]
    if set(needed) <= set(found):
        return ""
    prefixes = [
        prefix
        for prefix in sub_modules_named(weights, needed)
        if within_larger or all(plain_name(each).startswith(prefix) for each in weights)
    ]
    shapes = {plain_name(each): value.shape for each, value in weights.items()}
    fitting = [
        prefix
        for prefix in prefixes
        if all(is_lazy(expected[own]) or shapes[prefix + plain_name(own)] == expected[own].shape for own in needed)
    ]
    if len(fitting) > 1:
        raise CheckpointError(
            f"The weights {name} hold the adapter's model more than once: under {first_few(fitting)}.",
            "Save the state_dict of the one that serves, and register that.",
        )
    return next(iter(fitting or prefixes), "")


def _set_aside(model: nn.Module, weights: Mapping[str, Tensor], places: _Places) -> list[str]:
    """Names in the file that the model does not store: it makes them itself, or a larger module has them."""
    made = {plain_name(each): value for each, value in model.named_buffers()}
    ignored = [pattern for module in model.modules() for pattern in _ignored(module)]
    averaged = all(each == _AVERAGED or each.startswith("module.") for each in weights)
    aside = []
    for each in weights.keys() - places.own_names.keys():
        value, plain = weights[each], plain_name(each)
        inner = plain.removeprefix(places.prefix)
        if (
            (inner in made and _equal_as(value, made[inner]))
            or (inner.rpartition(".")[2] == _POSITIONS and _counts(value))
            or (_is_mask(value) and any(re.search(pattern, inner) for pattern in ignored))
            or (each == _AVERAGED and averaged)
            or not plain.startswith(places.prefix)
        ):
            aside.append(each)
    return sorted(aside)


def _is_adapter_alone(found: Mapping[str, str], expected: Mapping[str, Tensor]) -> bool:
    """Whether a file under the model's own names lacks what the model holds frozen, as our copies of adapters do."""
    absent = _absent(expected, set(found.values()))
    return any(not expected[own].requires_grad and not own.endswith(_COUNTER) for own in absent)


def _absent(expected: Mapping[str, Tensor], present: Collection[str]) -> list[str]:
    """The model's names that are not there, nor any name that is tied to them."""
    ties = _tied_names(expected)
    return [own for own in expected if not any(tied in present for tied in ties[own])]


def _ignored(module: nn.Module) -> Collection[str]:
    """Patterns of names that a model of transformers leaves unread, by its own word."""
    patterns = getattr(module, "_keys_to_ignore_on_load_unexpected", None)
    return patterns if isinstance(patterns, list | tuple | set | frozenset) else ()


def _is_mask(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex()) or value.numel() == 1


def _equal_as(value: Tensor, made: Tensor) -> bool:
    """Whether the file's tensor is the model's own, as far as the type of the file holds it."""
    if is_lazy(made) or value.shape != made.shape:
        return False
    return torch.equal(value, made.to(device=value.device, dtype=value.dtype))


def _counts(value: Tensor) -> bool:
    """Whether a tensor is 0, 1, 2, … along its last dimension."""
    if value.is_floating_point() or value.is_complex() or not value.ndim or value.numel() != value.shape[-1]:
        return False
    return torch.equal(value.flatten().long(), torch.arange(value.shape[-1]))


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {own: value for own, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def _tied_names(expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """For each name, all names of the same tensor object, its own included."""
    by_identity: dict[int, list[str]] = defaultdict(list)
    for own, value in expected.items():
        by_identity[id(value)].append(own)
    return {own: names for names in by_identity.values() for own in names}


def _translates(model: nn.Module) -> bool:
    """Whether a module of the model reads names or shapes in a way of its own: then torch's strict load decides."""
    return any(
        _is_foreign(type(module)._load_from_state_dict.__module__) or any(_foreign_hooks(module))
        for module in model.modules()
    )


def _foreign_hooks(module: nn.Module) -> Iterator[bool]:
    for hook in module._load_state_dict_pre_hooks.values():
        yield _is_foreign(getattr(getattr(hook, "hook", hook), "__module__", ""))


def _is_foreign(module_name: str) -> bool:
    return not module_name.startswith("torch.")


def _end_laziness(module: Any) -> None:
    """Turn a lazy module of torch that has its parameters into the kind it stands for, as its first input would."""
    if module.has_uninitialized_params():
        return
    if isinstance(module, nn.LazyLinear):
        module.in_features = module.weight.shape[1]
    elif isinstance(module, _LazyConvXdMixin):
        inner = module.weight.shape[0] if module.transposed else module.weight.shape[1] * module.groups
        module.in_channels = inner
    elif isinstance(module, _NormBase):
        module.num_features = next((len(each) for each in (module.weight, module.running_mean) if each is not None), 0)
    for hook in ("_initialize_hook", "_load_hook"):
        getattr(module, hook).remove()
        delattr(module, hook)
    module.__class__ = module.cls_to_become


def _brings_itself(own: str, model: nn.Module) -> bool:
    """Whether a model may bring this tensor itself: how many batches a norm has seen, which old files do not say."""
    parent, _, leaf = own.rpartition(".")
    return leaf == _COUNTER and isinstance(model.get_submodule(parent), _NormBase)


def _of_another_architecture(name: str, problems: str) -> CheckpointError:
    return CheckpointError(
        f"The weights {name} do not fit the architecture that the adapter builds: {problems}",
        "Let the adapter's build_model return the architecture these weights were trained with.",
    )


def _is_finite(value: Tensor) -> bool:
    if not (value.is_floating_point() or value.is_complex()):
        return True
    return bool(torch.isfinite(value.float() if value.element_size() == 1 else value).all())


def _is_built_so(own: str, value: Tensor, expected: Mapping[str, Tensor]) -> bool:
    """Whether the model is built with this very tensor: attention masks hold -inf on purpose."""
    built = expected.get(own)
    if built is None or is_lazy(built):
        return False
    return value.dtype == built.dtype and torch.equal(value, built)


def _architecture_problems(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    unknown: Collection[str],
    expected: Mapping[str, Tensor],
    *,
    whole: bool,
) -> list[str]:
    ties = _tied_names(expected)
    shared = [own for own in tensors if not is_lazy(expected[own])]
    missing = [
        own
        for own in _absent(expected, tensors)
        if not _brings_itself(own, model) and (whole or expected[own].requires_grad)
    ]
    names = [] if _translates(model) else [("Missing", missing), ("Unexpected", list(unknown))]
    found = [
        *names,
        ("Of another shape", [_shapes(own, tensors, expected) for own in shared if _reshaped(own, tensors, expected)]),
        (
            "Of a type that would lose precision",
            [_types(own, tensors, expected) for own in tensors if _lossy(tensors[own].dtype, expected[own].dtype)],
        ),
        ("Tied in the model but different in the file", [own for own in shared if _untied(own, tensors, ties)]),
    ]
    return [f"{problem}: {first_few(each)}." for problem, each in found if each]


def _reshaped(own: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return tensors[own].shape != expected[own].shape


def _shapes(own: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    return f"{own} {tuple(tensors[own].shape)} instead of {tuple(expected[own].shape)}"


def _lossy(stored: torch.dtype, wanted: torch.dtype) -> bool:
    if stored.is_complex and wanted.is_floating_point:
        return True
    if (stored.is_floating_point or stored.is_complex) and (wanted.is_floating_point or wanted.is_complex):
        held, kept = torch.finfo(stored), torch.finfo(wanted)
        return held.eps < kept.eps or held.max > kept.max
    return stored.is_floating_point or wanted.is_floating_point or torch.promote_types(stored, wanted) != wanted


def _types(own: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    return f"{own} {tensors[own].dtype} instead of {expected[own].dtype}"


def _untied(own: str, tensors: Mapping[str, Tensor], ties: Mapping[str, list[str]]) -> bool:
    return any(
        tied in tensors and tensors[tied].shape == tensors[own].shape and not torch.equal(tensors[tied], tensors[own])
        for tied in ties[own]
        if tied != own
    )
