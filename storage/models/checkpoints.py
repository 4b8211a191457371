"""Weights from files nobody needs to trust: read, checked, and loaded into a model without executing anything."""

from __future__ import annotations

import json
import pickle
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gradtrail.digests import sha256_file
from gradtrail.errors import CheckpointError, UntrustedCodeError
from gradtrail.storage.files.atomic import replacing
from gradtrail.storage.gradients.measured import first_few
from gradtrail.storage.models.checkpoint_formats import Format, detect_format

__all__ = ["Format", "detect_format", "load_into", "read_weights", "to_safetensors", "write_safetensors"]

_STATE_DICT_KEYS = ("state_dict", "model_state_dict")
# What DistributedDataParallel and torch.compile put before every name.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")


def read_weights(path: Path, *, expected_sha256: str | None = None) -> dict[str, Tensor]:
    """Read tensors by name, on the CPU, from a safetensors file or a state_dict saved by `torch.save`.

    A state_dict may lie under the key `state_dict` or `model_state_dict` of a training checkpoint.

    Raises:
        CheckpointError: the file is absent, empty, damaged, of another digest, or holds something other than tensors.
        UntrustedCodeError: reading the file could execute code that it carries. It is refused, always.
    """
    if expected_sha256 is not None and path.is_file() and (found := sha256_file(path)) != expected_sha256:
        raise CheckpointError(
            f"{path} has the sha256 {found}; {expected_sha256} was recorded.",
            "The file was changed or damaged: restore it from the registry, or ingest the model version again.",
        )
    found_format = detect_format(path)
    if found_format == "safetensors":
        return _read_safetensors(path)
    if found_format == "torch_state_dict":
        return _read_state_dict(path)
    if found_format == "unknown":
        raise CheckpointError(
            f"{path} is neither safetensors nor a state_dict saved by torch.save.",
            "Save the weights with safetensors.torch.save_file(model.state_dict(), path).",
        )
    raise UntrustedCodeError(
        f"{path} is a {found_format} file: reading it can execute code that it carries.",
        "Save the weights with safetensors.torch.save_file(model.state_dict(), path) and register that.",
    )


def to_safetensors(path: Path, destination: Path) -> str:
    """Convert any file that `read_weights` reads into safetensors; returns the sha256 of the new file.

    The same tensors give the same bytes. Raises as `read_weights` does; then `destination` is as it was.
    """
    return write_safetensors(read_weights(path), destination)


def write_safetensors(
    state_dict: Mapping[str, Tensor], destination: Path, metadata: Mapping[str, str] | None = None
) -> str:
    """Write tensors as safetensors, whole or not at all; returns the sha256 of the file.

    The same tensors and metadata give the same bytes. Tensors that share memory are each written out.

    Raises:
        CheckpointError: a value is not a dense tensor, or `destination` cannot be written.
    """
    _require_tensors(str(destination), state_dict)
    tensors = {
        name: state_dict[name].detach().cpu().clone(memory_format=torch.contiguous_format) for name in state_dict
    }
    try:
        with replacing(destination) as temporary:
            save_file(tensors, str(temporary), metadata=dict(metadata or {}) or None)
            _sort_metadata(temporary)
            return sha256_file(temporary)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as fault:
        raise CheckpointError(
            f"{destination} cannot be written: {fault}.", "Check the folder and its space."
        ) from fault


def load_into(model: nn.Module, weights: Mapping[str, Tensor], *, name: str) -> None:
    """Load `weights` into `model`, strictly: every tensor it has, in its shape, and nothing else.

    A name may be left out where its tensor is tied to one that is there. Names that all begin with `module.` or
    `_orig_mod.` (wrappers of torch) are taken without it. A type that the model's own holds exactly (float16 into
    float32) is widened.

    Args:
        name: what the weights are called in messages.

    Raises:
        CheckpointError: another architecture, a lossy type, tied tensors that differ, or values that are not finite;
            the message names the first few tensors, and the model is as it was.
    """
    expected = {key: value for key, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    weights = _without_wrapper_prefix(weights, expected)
    ties = _tied_names(expected)
    damaged = [key for key, value in weights.items() if not (_is_finite(value) or _is_built_so(key, value, expected))]
    if damaged:
        raise CheckpointError(
            f"The weights {name} are not finite (NaN or infinity) in {first_few(damaged)}.",
            "The training diverged or the file is damaged: register an earlier checkpoint.",
        )
    problems = _architecture_problems(weights, expected, ties)
    if problems:
        raise CheckpointError(
            f"The weights {name} do not fit the architecture that the adapter builds: {' '.join(problems)}",
            "Let the adapter's build_model return the architecture these weights were trained with.",
        )
    model.load_state_dict(dict(weights), strict=False)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as fault:
        raise CheckpointError(
            f"{path} is a damaged or truncated safetensors file: {fault}.", "Download or register the weights again."
        ) from fault


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        # As a stream, because torch.load chooses another reader where a path ends in .safetensors.
        with path.open("rb") as stream:
            loaded: Any = torch.load(stream, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as fault:
        raise CheckpointError(
            f"{path} is a damaged state_dict: {fault}.", "Download or register the weights again."
        ) from fault
    for key in _STATE_DICT_KEYS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"{path} holds a {type(loaded).__name__}, not a state_dict.", "Save model.state_dict() and register that."
        )
    _require_tensors(str(path), loaded)
    return dict(loaded)


def _require_tensors(name: str, weights: Mapping[Any, Any]) -> None:
    if not weights:
        raise CheckpointError(f"{name}: there are no weights in it.", "Save model.state_dict() and register that.")
    other = [str(key) for key, value in weights.items() if not (isinstance(key, str) and _is_dense(value))]
    if other:
        raise CheckpointError(
            f"{name}: {first_few(other)} is not a dense tensor.", "Save model.state_dict() alone, with dense tensors."
        )


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized and not value.is_meta


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(
        torch.isfinite(value.float() if value.element_size() == 1 else value).all()
    )


def _is_built_so(key: str, value: Tensor, expected: Mapping[str, Tensor]) -> bool:
    """Whether the model is built with this very tensor: attention masks hold -inf on purpose."""
    built = expected.get(key)
    return built is not None and value.dtype == built.dtype and torch.equal(value, built)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order; its writer keeps it in a hash map, whose order is random."""
    with path.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        if "__metadata__" not in header:
            return
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) > length:
            raise ValueError("the header of a safetensors file has another form than expected")
        stream.seek(8)
        stream.write(ordered.ljust(length))


def _without_wrapper_prefix(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for prefix in _WRAPPER_PREFIXES:
        if all(key.startswith(prefix) for key in weights) and not any(key.startswith(prefix) for key in expected):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _tied_names(expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """For each name, all names of the same tensor object, its own included."""
    by_identity: dict[int, list[str]] = defaultdict(list)
    for key, value in expected.items():
        by_identity[id(value)].append(key)
    return {key: names for names in by_identity.values() for key in names}


def _architecture_problems(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], ties: Mapping[str, list[str]]
) -> list[str]:
    shared = [key for key in expected if key in weights]
    found = [
        ("Missing", [key for key in expected if not any(tied in weights for tied in ties[key])]),
        ("Unexpected", [key for key in weights if key not in expected]),
        ("Of another shape", [_shapes(key, weights, expected) for key in shared if _reshaped(key, weights, expected)]),
        (
            "Of a type that would lose precision",
            [_types(key, weights, expected) for key in shared if _lossy(key, weights, expected)],
        ),
        ("Tied in the model but different in the file", [key for key in shared if _untied(key, weights, ties)]),
    ]
    return [f"{problem}: {first_few(keys)}." for problem, keys in found if keys]


def _reshaped(key: str, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return weights[key].shape != expected[key].shape


def _shapes(key: str, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    return f"{key} {tuple(weights[key].shape)} instead of {tuple(expected[key].shape)}"


def _lossy(key: str, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    stored, wanted = weights[key].dtype, expected[key].dtype
    if stored.is_floating_point and wanted.is_floating_point:
        return torch.finfo(stored).eps < torch.finfo(wanted).eps or torch.finfo(stored).max > torch.finfo(wanted).max
    return stored.is_floating_point or wanted.is_floating_point or torch.promote_types(stored, wanted) != wanted


def _types(key: str, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    return f"{key} {weights[key].dtype} instead of {expected[key].dtype}"


def _untied(key: str, weights: Mapping[str, Tensor], ties: Mapping[str, list[str]]) -> bool:
    return any(
        tied in weights and weights[tied].shape == weights[key].shape and not torch.equal(weights[tied], weights[key])
        for tied in ties[key]
        if tied != key
    )
