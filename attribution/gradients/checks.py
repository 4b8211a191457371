"""Refusals before the first pass: models whose examples couple, whose loss is random, or which hide a weight's use."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import ModelAdapter
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.gradients.eval_mode import frozen_in_eval
from gradtrail.attribution.gradients.hooks import Instrument, build_instrument, planned_layer, recording
from gradtrail.attribution.gradients.weight_gradients import weight_gradients
from gradtrail.errors import ModelError
from gradtrail.nouns import Example

_COUPLING_REMEDY = (
    "Look for BatchNorm that uses batch statistics even in eval mode (track_running_stats=False, or train() in "
    "forward), normalisation over the batch, or losses averaged over it."
)


def check_determinism(
    adapter: ModelAdapter, model: nn.Module, examples: Sequence[Example], device: str | torch.device = "cpu"
) -> None:
    """Run the batch `examples` twice, and its last example alone; all must agree, in eval mode.

    Raises:
        ModelError: when losses are mis-shaped, random, coupled between examples or averaged over the batch.
    """
    first_outputs, first = _run(adapter, model, examples, device)
    second_outputs, second = _run(adapter, model, examples, device)
    slack = _loss_slack(first_outputs)
    if not (_agree(first, second, slack) and _agree(first_outputs, second_outputs)):
        raise ModelError(
            "The same batch gave two different results: the model or its loss is random even in eval mode.",
            "Look for dropout with training=True, sampling or noise in forward, outputs or losses; fix its seed.",
        )
    if len(examples) == 1:
        return
    example_id = examples[-1].example_id
    try:
        lone_outputs, lone = _run(adapter, model, examples[-1:], device)
    except (RuntimeError, ValueError) as cause:
        raise ModelError(
            f"Example {example_id} runs in a batch but not alone: {cause}.",
            _COUPLING_REMEDY,
        ) from cause
    same_loss = _agree(lone, first[-1:], slack)
    if not same_loss and _agree(lone / len(examples), first[-1:], slack):
        raise ModelError(
            f"The loss of example {example_id} is divided by the number of examples in its batch.",
            "Return per-example losses that are not averaged: no division by the batch size.",
        )
    comparable = first_outputs[-1:].shape == lone_outputs.shape
    if not same_loss or (comparable and not _agree(lone_outputs, first_outputs[-1:])):
        raise ModelError(
            f"Example {example_id} gives another result alone than in a batch: the examples of a batch are coupled.",
            _COUPLING_REMEDY,
        )


def check_capture(
    adapter: ModelAdapter,
    model: nn.Module,
    examples: Sequence[Example],
    plan: FeaturePlan,
    device: str | torch.device = "cpu",
) -> None:
    """Compare the features of the batch's first and last example with autograd's own weight gradients, once.

    This finds what no rule can know: a weight used without calling its layer, or a batch that is not the first
    dimension inside the model.

    Raises:
        ModelError: naming the group whose features are not the gradient.
    """
    instrument = build_instrument(adapter, model, plan, device)
    with recording(instrument, examples) as record:
        losses = adapter.losses(record.outputs, record.batch)
        vectors = record.vectors(losses)
    for row in sorted({0, len(examples) - 1}):
        expected = _autograd_vector(instrument, examples[row])
        if not torch.isfinite(expected).all():
            continue
        allowed = _rounding(plan.lower_precision or losses.dtype) * expected.norm()
        for group, columns in zip(plan.groups, plan.slices, strict=True):
            if (vectors[row, columns] - expected[columns]).norm() > allowed:
                raise ModelError(
                    f"The features of layer {group.name} are not its gradient for example {examples[row].example_id}.",
                    "Its weight is used in another way than by calling the layer, the batch is not the first dimension "
                    "there, or the adapter's position_mask hides positions that count; name the layer in "
                    "FeatureSettings.fallback_for or in FeatureSettings.exclude.",
                )


def _autograd_vector(instrument: Instrument, example: Example) -> Tensor:
    """The projected weight gradient of one example by plain autograd: (dimension,)."""
    adapter, model = instrument.adapter, instrument.model
    batch = adapter.collate([example]).to(instrument.device)
    names = [name for group in instrument.plan.groups for name in group.parameters]
    with frozen_in_eval(model):
        found = weight_gradients(
            instrument.run, model, names, batch, lambda outputs: adapter.losses(outputs, batch).sum()
        )
    gradients = dict(zip(names, found, strict=True))
    pieces = []
    for group, projection in zip(instrument.plan.groups, instrument.projections, strict=True):
        own = [gradients[name] for name in group.parameters]
        if group.modules:
            layer, rule = planned_layer(model, group.modules[0])
            blocks = rule.matrix(layer, dict(zip(rule.parameters(layer), own, strict=True)))
        else:
            blocks = own[0].reshape(1, group.d_out, group.d_in)
        blocks = blocks.to(projection.inputs.dtype)
        summed = "bop,boi,biq->bpq" if projection.exact else "bop,boi,biq->pq"
        pieces.append(torch.einsum(summed, projection.outputs, blocks, projection.inputs).flatten())
    return torch.cat(pieces)


def _run(
    adapter: ModelAdapter, model: nn.Module, examples: Sequence[Example], device: str | torch.device
) -> tuple[Tensor, Tensor]:
    batch = adapter.collate(examples).to(device)
    with frozen_in_eval(model), torch.no_grad():
        outputs = adapter.outputs(model, batch)
        losses = adapter.losses(outputs, batch)
    if losses.shape != (len(examples),):
        raise ModelError(
            f"Losses have shape {tuple(losses.shape)}, but the batch holds {len(examples)} examples.",
            "The adapter's losses must return one loss per example: sum over tokens or pixels, and use "
            'reduction="none" so that nothing is averaged over examples.',
        )
    return outputs, losses


def _agree(left: Tensor, right: Tensor, slack: float = 0.0) -> bool:
    """Equal up to rounding of the largest finite entry; entries that are not finite are judged elsewhere."""
    finite = torch.isfinite(left) & torch.isfinite(right)
    if not finite.any():
        return True
    pair = torch.stack([left[finite], right[finite]]).cpu().double()
    allowed = _rounding(left.dtype) * pair.abs().max().item() + slack
    return (pair[0] - pair[1]).abs().max().item() <= allowed


def _loss_slack(outputs: Tensor) -> float:
    """Rounding of a loss near zero, which comes from the size of the outputs and not from its own."""
    finite = outputs[torch.isfinite(outputs)]
    return 16 * torch.finfo(outputs.dtype).eps * finite.abs().max().item() if len(finite) else 0.0


def _rounding(dtype: torch.dtype) -> float:
    return sqrt(torch.finfo(dtype).eps)
