"""An adapter of peft has to be one model however it is run: as it is, loaded again, and merged into its base."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import ModelAdapter, TrainingData, iterate_examples, measured_outputs
from gradtrail.attribution.adapters.faults import plain_faults
from gradtrail.errors import CheckpointError

_AGREEMENT = 1e-3
_ROUNDINGS = 16
"""Relative difference of outputs that counts as the same: 1e-3, or 16 roundings where the model's type is coarser."""


def is_peft(model: nn.Module) -> bool:
    """Whether a model carries an adapter of peft."""
    return bool(getattr(model, "peft_config", None))


def outputs_of_first(adapter: ModelAdapter, model: nn.Module, data: TrainingData) -> Tensor:
    """The outputs for the first training example, in evaluation mode, on the CPU; the model is left as it was."""
    examples = list(islice(iterate_examples(data), 1))
    place = next((each.device for each in model.parameters()), torch.device("cpu"))
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), plain_faults(examples):
            return measured_outputs(adapter, model, adapter.collate(examples).to(place)).detach().cpu()
    finally:
        for module in training:
            module.training = True


def refuse_other_outputs(given: Tensor, again: Tensor, model: nn.Module, *, name: str, how: str) -> None:
    """Refuse an adapter whose outputs differ from those of the model as it was given.

    Raises:
        CheckpointError: it says by how much, `how` being what was done with the model meanwhile.
    """
    largest = float(given.abs().max())
    allowed = max(_AGREEMENT, _ROUNDINGS * _rounding(model)) * largest
    gap = float((given - again).abs().max())
    if not gap <= allowed:
        raise CheckpointError(
            f"The weights {name} are another model once they are {how}: outputs of the first training example differ "
            f"by {gap:.3g}, where the largest is {largest:.3g}.",
            "Adapt no layer whose weight is tied to another's (embedding and head), or register the merged model with "
            "an adapter class whose build_model gives the merged architecture.",
        )


def refuse_unlike_merged(adapter: ModelAdapter, model: nn.Module, data: TrainingData, *, name: str) -> None:
    """Merge the adapter into its base and compare; the model stays merged.

    Kinds of adapters that cannot be merged (prompts) are left as they are.

    Raises:
        CheckpointError: the merged model is another one.
    """
    given = outputs_of_first(adapter, model, data)
    merge: Callable[[], None] | None = getattr(model, "merge_adapter", None)
    if merge is None:
        return
    try:
        merge()
    except NotImplementedError:
        return
    merged = outputs_of_first(adapter, model, data)
    refuse_other_outputs(given, merged, model, name=name, how="merged into their base")


def _rounding(model: nn.Module) -> float:
    return max((torch.finfo(each.dtype).eps for each in model.parameters() if each.is_floating_point()), default=0.0)
