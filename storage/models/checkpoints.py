"""Weights from files nobody needs to trust: read and written without executing anything."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradtrail.digests import sha256_file
from gradtrail.errors import CheckpointError, UntrustedCodeError
from gradtrail.storage.files.atomic import replacing
from gradtrail.storage.gradients.measured import first_few
from gradtrail.storage.models.checkpoint_formats import Format, detect_format
from gradtrail.storage.models.exported_programs import read_exported
from gradtrail.storage.models.fitting import FittedWeights, fit_weights, load_into
from gradtrail.storage.models.frozen_bases import BASE_METADATA

__all__ = [
    "FittedWeights",
    "Format",
    "WeightsFile",
    "detect_format",
    "fit_weights",
    "load_into",
    "read_file",
    "read_weights",
    "to_safetensors",
    "write_safetensors",
]

_STATE_DICT_KEYS = ("state_dict", "model_state_dict")
_LIGHTNING = "pytorch-lightning_version"


@dataclass(frozen=True)
class WeightsFile:
    """What a file of weights holds.

    Attributes:
        tensors: on the CPU, by the names that the file has for them.
        format: of the file, for example `safetensors`.
        step: updates after which it was written, where the file says so.
        within_larger: it is a checkpoint of Lightning, where the model may be one part of the module.
        base_sha256: digest of the frozen base, where gradtrail wrote an adapter alone.
    """

    tensors: Mapping[str, Tensor]
    format: Format
    step: int | None = None
    within_larger: bool = False
    base_sha256: str = ""


def read_weights(path: Path, *, expected_sha256: str | None = None) -> dict[str, Tensor]:
    """Read tensors by name, on the CPU: the tensors of `read_file`, which says what is read and what is refused."""
    return dict(read_file(path, expected_sha256=expected_sha256).tensors)


def read_file(path: Path, *, expected_sha256: str | None = None) -> WeightsFile:
    """Read a safetensors file, a state_dict saved by `torch.save`, a checkpoint of Lightning or an exported program.

    A state_dict may lie under the key `state_dict` or `model_state_dict` of a training checkpoint. Of an exported
    program (`.pt2`) the weights are read, which are plain bytes, and nothing else.

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
        return WeightsFile(_read_safetensors(path), found_format, base_sha256=_base_sha256(path))
    if found_format == "torch_state_dict":
        return _read_state_dict(path)
    if found_format == "torch_export" and (tensors := read_exported(path)) is not None:
        _require_tensors(str(path), tensors)
        return WeightsFile(tensors, found_format)
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
        # A conjugated or negated view says so in a flag, which safetensors does not read.
        name: tensor.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
        for name, tensor in state_dict.items()
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


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as fault:
        raise CheckpointError(
            f"{path} is a damaged or truncated safetensors file: {fault}.", "Download or register the weights again."
        ) from fault


def _base_sha256(path: Path) -> str:
    """The digest of the base in the metadata of a safetensors file that holds an adapter alone; else empty."""
    with safetensors.safe_open(path, framework="pt") as opened:
        return str((opened.metadata() or {}).get(BASE_METADATA, ""))


def _read_state_dict(path: Path) -> WeightsFile:
    try:
        # As a stream, because torch.load chooses another reader where a path ends in .safetensors.
        with path.open("rb") as stream:
            loaded: Any = torch.load(stream, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as fault:
        raise CheckpointError(
            f"{path} is a damaged state_dict: {fault}.", "Download or register the weights again."
        ) from fault
    whole = loaded
    for key in _STATE_DICT_KEYS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"{path} holds a {type(loaded).__name__}, not a state_dict.", "Save model.state_dict() and register that."
        )
    _require_tensors(str(path), loaded)
    of_lightning = loaded is not whole and _LIGHTNING in whole
    step = whole.get("global_step") if of_lightning else None
    return WeightsFile(
        dict(loaded), "torch_state_dict", step if isinstance(step, int) else None, within_larger=of_lightning
    )


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
