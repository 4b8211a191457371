"""One model's row: its error against autograd, its speed beside a loop of autograd, and what fell back."""

from __future__ import annotations

import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import ModelAdapter
from gradtrail.attribution.features.plan import FeaturePlan, FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import iterate_features
from gradtrail.attribution.gradients.checks import check_capture, check_determinism
from gradtrail.attribution.gradients.forward_passes import hooked_forward
from gradtrail.attribution.gradients.tracked_model import track_model
from gradtrail.errors import AttributionWarning
from gradtrail.nouns import Example
from gradtrail.storage.models.checkpoints import load_into, read_weights
from zoo.base import Case

COMPARED = 4
WANTED, WANTED_OF_PRODUCTS = 2.0, 1.4
DOMINATE = 0.5
"""From this share of a loop's time on, matrix products count as what dominates it."""

_NOISE = 0.02
_ROUNDING = 1e-5
_LEAST_SHARE = 1e-3
"""A layer whose gradient is smaller than this share of the whole is compared with that share."""
_PRODUCTS = ("mm", "bmm", "baddbmm", "linear", "conv", "scaled_dot_product")


def measured_row(case: Case, *, repetitions: int, count: int | None = None) -> dict[str, Any]:
    """The row of a model; a model that fails has the last line of its traceback, and no figures."""
    row: dict[str, Any] = {"model": case.name, "adapter_lines": case.adapter_lines}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            row |= _figures(case, repetitions, count)
    except Exception as fault:  # one row a model, whatever happens
        traceback.print_exc()
        return {**row, "failed": " ".join(f"{type(fault).__name__}: {fault}".split())}
    said = dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, AttributionWarning))
    return {**row, "said": list(said)}


def _figures(case: Case, repetitions: int, count: int | None) -> dict[str, Any]:
    adapter = case.adapter()
    users, ours = _models(case, adapter)
    examples = list(adapter.training_data())[:count]
    check_determinism(adapter, ours, examples[:8])
    check_capture(adapter, ours, examples[:8], plan_features(ours, FeatureSettings()))
    plan = plan_features(ours, FeatureSettings())
    whole, worst = _errors(case, adapter, users, ours)
    fallen, one_at_a_time = _fallback(adapter, ours, plan, examples[: case.batch_size])
    times = _in_turns(case, adapter, (users, ours), plan, examples, repetitions)
    seconds, loop = median(times.ours), median(times.loop)
    share = _share_of_products(case, users, examples[:8], loop / len(examples))
    return {
        "parameters": sum(parameter.numel() for parameter in users.parameters()),
        "relative_error": float(f"{whole:.2g}"),
        "largest_error_of_a_layer": float(f"{worst:.2g}"),
        "examples_per_second": round(len(examples) / seconds, 1),
        "ratio_to_autograd_loop": round(median(times.ratios), 2),
        "ratios": [round(ratio, 2) for ratio in times.ratios],
        "loop_examples_per_second": round(len(examples) / loop, 1),
        "share_of_products": round(share, 2),
        "wanted_ratio": WANTED_OF_PRODUCTS if share >= DOMINATE else WANTED,
        "groups": len(plan.groups),
        "fallback_groups": len(fallen),
        "fallback_names": fallen,
        "one_at_a_time": one_at_a_time,
        "examples": len(examples),
        "batch_size": case.batch_size,
    }


def _models(case: Case, adapter: ModelAdapter) -> tuple[nn.Module, nn.Module]:
    """The user's trained model, and the one that gradtrail builds and loads from the file that the user saved."""
    users = _built(adapter)
    generator = torch.Generator().manual_seed(2)
    for parameter in users.parameters():
        if parameter.requires_grad:
            parameter.data += _NOISE * torch.randn(parameter.shape, generator=generator)
    if case.half_precision:
        users = users.to(torch.bfloat16)
    ours = _built(adapter)
    with tempfile.TemporaryDirectory() as folder:
        file = (case.save or _save_state)(users, Path(folder))
        load_into(ours, read_weights(file), name=case.name)
    return users.float().eval(), ours.eval()


def _built(adapter: ModelAdapter) -> nn.Module:
    torch.manual_seed(0)
    return adapter.build_model()


def _save_state(model: nn.Module, folder: Path) -> Path:
    torch.save(model.state_dict(), folder / "model.pt")
    return folder / "model.pt"


def _errors(case: Case, adapter: ModelAdapter, users: nn.Module, ours: nn.Module) -> tuple[float, float]:
    """Relative error of inner products of gradients against the user's own: of the whole, and of the worst layer.

    Inner products, because they do not depend on how a gradient is arranged.
    """
    plan = plan_features(ours, FeatureSettings(group_dimension=1 << 40))
    examples = adapter.training_data()[:COMPARED]
    rows = list(iterate_features(adapter, ours, examples, plan, batch_size=COMPARED))
    measured = torch.cat([batch.vectors for batch in rows])
    wanted = [_own_gradients(case, users, example) for example in examples]
    pairs = []
    for group, columns in zip(plan.groups, plan.slices, strict=True):
        own = torch.stack([torch.cat([each[name].flatten() for name in group.parameters]) for each in wanted])
        pairs.append((_products(measured[:, columns]), _products(own)))
    missed = sum(each.square().sum() for each in wanted[0].values()) - sum(own[0, 0] for _, own in pairs)
    found, right = (sum(part) for part in zip(*pairs, strict=True))
    least = _LEAST_SHARE * right.norm()
    worst = max(float((each - own).norm() / (own.norm() + least)) for each, own in pairs)
    uncovered = abs(float(missed / right[0, 0]))
    return max(float((found - right).norm() / right.norm()), uncovered if uncovered > _ROUNDING else 0.0), worst


def _own_gradients(case: Case, users: nn.Module, example: Example) -> dict[str, Tensor]:
    users.zero_grad(set_to_none=True)
    case.own_loss(users, example).backward()
    return {
        name: torch.zeros_like(parameter, dtype=torch.float64) if parameter.grad is None else parameter.grad.double()
        for name, parameter in users.named_parameters()
        if parameter.requires_grad
    }


def _products(rows: Tensor) -> Tensor:
    return rows.double() @ rows.double().T


def _fallback(
    adapter: ModelAdapter, model: nn.Module, plan: FeaturePlan, examples: Sequence[Example]
) -> tuple[list[str], bool]:
    """The groups that autograd measures, and whether it takes the examples one at a time."""
    tracked = track_model(adapter, model, plan)
    with hooked_forward(tracked, examples) as forward:
        forward.vectors(adapter.losses(forward.outputs, forward.batch))
    routes = tracked.routes
    if routes is None or routes.fallback is None:
        return [], False
    return [plan.groups[place].name for place in sorted(routes.by_autograd)], routes.fallback.one_at_a_time


@dataclass(frozen=True)
class _Times:
    ours: list[float]
    loop: list[float]

    @property
    def ratios(self) -> list[float]:
        """How many times as fast as the loop of the same turn."""
        return [loop / ours for ours, loop in zip(self.ours, self.loop, strict=True)]


def _in_turns(
    case: Case,
    adapter: ModelAdapter,
    models: tuple[nn.Module, nn.Module],
    plan: FeaturePlan,
    examples: Sequence[Example],
    repetitions: int,
) -> _Times:
    users, ours = models

    def index() -> None:
        rows = iterate_features(adapter, ours, examples, plan, batch_size=case.batch_size)
        assert sum(len(batch.example_ids) for batch in rows) == len(examples)

    def loop() -> None:
        for example in examples:
            users.zero_grad(set_to_none=True)
            case.own_loss(users, example).backward()

    index(), _seconds(lambda: [case.own_loss(users, example).backward() for example in examples[:8]])
    times = _Times([], [])
    for _ in range(repetitions):
        times.ours.append(_seconds(index))
        times.loop.append(_seconds(loop))
    return times


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of this process's own processor time, which others on the machine do not take part in."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _share_of_products(case: Case, users: nn.Module, examples: Sequence[Example], seconds: float) -> float:
    """Share of a loop's time of matrix products, convolutions and attention, where an example takes `seconds`."""
    users.zero_grad(set_to_none=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for example in examples:
            case.own_loss(users, example).backward()
    found = sum(
        event.self_cpu_time_total
        for event in profile.key_averages()
        if event.key.startswith("aten::") and any(name in event.key for name in _PRODUCTS)
    )
    return min(1.0, found / 1e6 / (seconds * len(examples)))
