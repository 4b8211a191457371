"""Refusals before the first pass: models whose examples couple, whose loss is random, or which hide a weight's use."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import Batch, ModelAdapter, at_least_float32, model_outputs
from gradtrail.attribution.adapters.faults import plain_faults
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.gradients.eval_mode import frozen_in_eval
from gradtrail.attribution.gradients.forward_passes import hooked_forward
from gradtrail.attribution.gradients.oracle import autograd_vector, coarsest_dtype, rounding, unlike_autograd
from gradtrail.attribution.gradients.tracked_model import TrackedModel, track_model
from gradtrail.errors import AttributionWarning, ModelError
from gradtrail.nouns import Example

_COUPLING_REMEDY = (
    "Look for BatchNorm that uses batch statistics even in eval mode (track_running_stats=False, or train() in "
    "forward), normalisation over the batch, or losses averaged over it or over what of it counts (tokens, pixels)."
)
_COMPARED = 4
"""Examples of a batch whose gradients are compared with autograd."""


def check_determinism(
    adapter: ModelAdapter, model: nn.Module, examples: Sequence[Example], device: str | torch.device = "cpu"
) -> float:
    """Run the batch `examples` twice, and each of them alone; all must agree, in eval mode.

    Returns how far an example's loss in the batch lies from its loss alone, relatively and at most: the rounding.

    Raises:
        ModelError: when losses are mis-shaped, random, coupled between examples or averaged over the batch.
    """
    with plain_faults(examples, lambda example: _run(adapter, model, [example], device)):
        first = _run(adapter, model, examples, device)
        second = _run(adapter, model, examples, device)
    slack = _loss_slack(first)
    if not (
        _agree(first.losses, second.losses, first.dtype, slack) and _agree(first.outputs, second.outputs, first.dtype)
    ):
        raise ModelError(
            "The same batch gave two different results: the model or its loss is random even in eval mode.",
            "Look for dropout with training=True, sampling or noise in forward, outputs or losses; fix its seed.",
        )
    furthest = 0.0
    for row in reversed(range(len(examples) if len(examples) > 1 else 0)):
        lone = _run_alone(adapter, model, examples[row], device)
        own = _Results(first.outputs[row : row + 1], first.losses[row : row + 1], first.dtype)
        furthest = max(furthest, _checked_alone(examples[row].example_id, own, lone, len(examples), slack))
    return furthest


def check_capture(
    adapter: ModelAdapter,
    model: nn.Module,
    examples: Sequence[Example],
    plan: FeaturePlan,
    device: str | torch.device = "cpu",
) -> float:
    """Compare the features of some of the batch's examples with autograd's own weight gradients of each alone.

    This finds what no rule can know: a weight used without calling its layer, or a batch that is not the first
    dimension inside the model. Returns the largest relative error found.

    Raises:
        ModelError: naming the group whose features are not the gradient; or when no example has a finite gradient.
    """
    tracked = track_model(adapter, model, plan, device)
    with (
        plain_faults(examples, lambda example: _run(adapter, model, [example], device)),
        hooked_forward(tracked, examples) as forward,
    ):
        losses = adapter.losses(forward.outputs, forward.batch)
        vectors = forward.vectors(losses)
    largest, finite = 0.0, False
    for row in _compared_rows(vectors):
        expected = autograd_vector(tracked, examples[row])
        if not torch.isfinite(expected).all() and not torch.isfinite(vectors[row]).all():
            continue
        finite = True
        dtype = coarsest_dtype(model, plan.lower_precision) if tracked.routes is None else tracked.routes.dtype
        wrong = unlike_autograd(vectors[row], expected, plan, dtype)
        if wrong and _same_in_double(tracked, examples, row, wrong):
            continue
        if wrong:
            raise ModelError(
                f"The features of layer {plan.groups[wrong[0]].name} are not its gradient for example "
                f"{examples[row].example_id}.",
                "Its weight is used in another way than by calling the layer, the examples of a batch are coupled or "
                "not its first dimension there, or the adapter's position_mask hides positions that count. "
                + _measured_otherwise(plan.groups[wrong[0]].name, plan),
            )
        whole = expected.norm()
        if whole > 0:
            largest = max(largest, ((vectors[row] - expected).norm() / whole).item())
    if not finite:
        raise ModelError(
            f"None of {len(examples)} examples has a finite gradient, so that nothing can be compared with autograd.",
            "Look at the checkpoint, and correct or remove examples with values that are not finite.",
        )
    return largest


def _measured_otherwise(name: str, plan: FeaturePlan) -> str:
    """What to do about a group that cannot be measured as planned, with the options that there are."""
    modules = next((group.modules for group in plan.groups if group.name == name), ())
    if not modules:
        return f"Index with --exclude '{name}', or say exclude = ('{name}',) in the adapter: it counts as uncovered."
    return (
        f"Index with --fallback-for '{name}' to measure it by autograd, or with --exclude '{name}'; or say "
        f"fallback_for = ('{name}',) or exclude = ('{name}',) in the adapter."
    )


def _same_in_double(tracked: TrackedModel, examples: Sequence[Example], row: int, places: Sequence[int]) -> bool:
    """Whether the groups at `places` are the gradient of one example once all is computed in float64.

    Where rounding moves an input of a ReLU across zero, both gradients are right, each of its own pass. False where the
    model cannot run in float64, or runs in lower precision on purpose.
    """
    if tracked.plan.lower_precision is not None:
        return False
    adapter, own_collate = copy.copy(tracked.adapter), tracked.adapter.collate

    def collate(chosen: Sequence[Example]) -> Batch:
        return own_collate(chosen).with_each(lambda given: given.double() if given.is_floating_point() else given)

    try:
        vars(adapter)["collate"] = collate
        exact = track_model(adapter, copy.deepcopy(tracked.model).double(), tracked.plan, tracked.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AttributionWarning)
            with hooked_forward(exact, examples) as forward:
                found = forward.vectors(adapter.losses(forward.outputs, forward.batch))[row]
            expected = autograd_vector(exact, examples[row])
    except Exception:  # what is told then is what was found in the model's own type
        return False
    return set(places).isdisjoint(unlike_autograd(found, expected, tracked.plan, torch.float64))


def _compared_rows(vectors: Tensor) -> list[int]:
    """Rows drawn for comparison: some with a gradient, and some without or with one that is not finite."""
    drawn = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0)).tolist()
    norms = vectors.double().norm(dim=1).tolist()
    telling = [row for row in drawn if isfinite(norms[row]) and norms[row] > 0]
    others = [row for row in drawn if not (isfinite(norms[row]) and norms[row] > 0)]
    return telling[:_COMPARED] + others[: _COMPARED // 2]


@dataclass(frozen=True)
class _Results:
    """Outputs and losses of a batch, and the type with the fewest digits on the way to them."""

    outputs: Tensor
    losses: Tensor
    dtype: torch.dtype


def _run(adapter: ModelAdapter, model: nn.Module, examples: Sequence[Example], device: str | torch.device) -> _Results:
    batch = adapter.collate(examples).to(device)
    with frozen_in_eval(model), torch.no_grad():
        given = model_outputs(adapter, model, batch)
        outputs = at_least_float32(given)
        losses = adapter.losses(outputs, batch)
    if losses.shape != (len(examples),):
        raise ModelError(
            f"Losses have shape {tuple(losses.shape)}, but the batch holds {len(examples)} examples.",
            "The adapter's losses must return one loss per example: sum over tokens or pixels, and use "
            'reduction="none" so that nothing is averaged over examples.',
        )
    return _Results(outputs, losses, coarsest_dtype(model, given.dtype if given.is_floating_point() else None))


def _run_alone(adapter: ModelAdapter, model: nn.Module, example: Example, device: str | torch.device) -> _Results:
    try:
        return _run(adapter, model, [example], device)
    except (RuntimeError, ValueError) as cause:
        raise ModelError(
            f"Example {example.example_id} runs in a batch but not alone: {cause}.", _COUPLING_REMEDY
        ) from cause


def _checked_alone(example_id: str, own: _Results, lone: _Results, size: int, slack: float) -> float:
    """How far the loss of an example in a batch of `size` lies from its loss alone, relatively."""
    same_loss = _agree(lone.losses, own.losses, own.dtype, slack)
    if not same_loss and _agree(lone.losses / size, own.losses, own.dtype, slack):
        raise ModelError(
            f"The loss of example {example_id} is divided by the number of examples in its batch.",
            "Return per-example losses that are not averaged: no division by the batch size.",
        )
    comparable = own.outputs.shape == lone.outputs.shape
    if not same_loss and size > 1 and comparable and _agree(lone.outputs, own.outputs, own.dtype):
        raise ModelError(
            f"Example {example_id} has the same outputs alone and in a batch, but another loss: the examples of a "
            "batch are coupled by the loss, as by contrastive losses with in-batch negatives, or by a divisor of what "
            "the batch holds.",
            "Keep an example's negatives in the example itself, or take a whole batch as one example; where losses "
            "are averaged over what counts of the batch, sum over what counts of the example (docs/recipes.md).",
        )
    if not same_loss or (comparable and not _agree(lone.outputs, own.outputs, own.dtype)):
        raise ModelError(
            f"Example {example_id} gives another result alone than in a batch: the examples of a batch are coupled.",
            _COUPLING_REMEDY,
        )
    gap, scale = (lone.losses - own.losses).abs().item(), lone.losses.abs().item()
    return gap / scale if isfinite(gap) and scale > 0 else 0.0


def _agree(left: Tensor, right: Tensor, dtype: torch.dtype, slack: float = 0.0) -> bool:
    """Finite in the same places, and there equal up to rounding of the largest entry."""
    finite = torch.isfinite(left)
    if not torch.equal(finite, torch.isfinite(right)):
        return False
    if not finite.any():
        return True
    pair = torch.stack([left[finite], right[finite]]).cpu().double()
    allowed = rounding(dtype) * pair.abs().max().item() + slack
    return (pair[0] - pair[1]).abs().max().item() <= allowed


def _loss_slack(results: _Results) -> float:
    """Rounding of a loss near zero, which comes from the size of the outputs and not from its own."""
    finite = results.outputs[torch.isfinite(results.outputs)]
    return 16 * torch.finfo(results.dtype).eps * finite.abs().max().item() if len(finite) else 0.0
