"""Adapters of peft that come without the frozen base: where their tensors belong, and which base they are for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradtrail.digests import canonical_json, sha256_bytes
from gradtrail.errors import CheckpointError
from gradtrail.storage.gradients.measured import first_few
from gradtrail.storage.models.parameter_names import plain_name

ADAPTER_CONFIG = "adapter_config.json"
BASE_METADATA = "gradtrail.base_sha256"
_SAVED_BESIDE = re.compile(r"\.modules_to_save\.[^.]+(?=\.|$)")
_MAGNITUDE = re.compile(r"\.lora_magnitude_vector\.weight$")
_DECIDES = (
    *("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "bias"),
    *("rank_pattern", "alpha_pattern", "trainable_token_indices", "layer_replication", "feedforward_modules"),
)
"""Keys of an adapter's configuration that change what it computes; names and shapes of tensors say the rest."""


def base_metadata(digest: str) -> dict[str, str]:
    """What the file of an adapter says of the base that it leaves out; nothing where it leaves out none."""
    return {BASE_METADATA: digest} if digest else {}


def refuse_other_adapter(model: nn.Module, config: Path, *, name: str) -> None:
    """Compare the configuration that peft saved with that of the model: scales are in it, and in no tensor.

    Raises:
        CheckpointError: it names the keys that differ, or the file is none.
    """
    try:
        saved = dict(json.loads(config.read_bytes()))
    except (ValueError, TypeError, RecursionError, OSError) as fault:
        raise CheckpointError(f"{config} cannot be read: {fault}.", "Save the adapter again.") from fault
    own = next(iter((getattr(model, "peft_config", None) or {}).values()), None)
    differing = [
        f"{key} {saved[key]} instead of {_plain(getattr(own, key))}"
        for key in _DECIDES
        if key in saved and hasattr(own, key) and _plain(getattr(own, key)) != saved[key]
    ]
    if differing:
        raise CheckpointError(
            f"The weights {name} are of an adapter of another configuration than build_model gives: "
            f"{first_few(differing)}.",
            f"Let build_model use the configuration in {config.name}.",
        )


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): each for key, each in value.items()}
    return sorted(value) if isinstance(value, set | frozenset) else value


def adapter_names(model: nn.Module, expected: Mapping[str, Tensor]) -> dict[str, str]:
    """The model's name for each name that peft gives a tensor in `adapter_model.safetensors`.

    As `save_pretrained` of peft 0.21 writes them: without the adapter's own name (`lora_A.default.weight` becomes
    `lora_A.weight`), modules saved whole under the name of the module they replace, DoRA's magnitude without `.weight`.
    Empty where the model is none of peft. Names of the frozen base are there as well: peft writes some (biases).
    """
    adapters = set(getattr(model, "peft_config", None) or ())
    if not adapters:
        return {}
    named = {}
    for own in expected:
        plain = plain_name(own)
        saved = _SAVED_BESIDE.sub("", plain) if _SAVED_BESIDE.search(plain) else plain
        saved = ".".join(part for part in saved.split(".") if part not in adapters)
        named[_MAGNITUDE.sub(".lora_magnitude_vector", saved)] = own
    return named


def base_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Digest of tensors by name, type, shape and value, in no order of names."""
    parts = {}
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        parts[name] = [str(tensor.dtype), list(tensor.shape), sha256_bytes(values.numpy().tobytes())]
    return sha256_bytes(canonical_json(parts))
