"""Products of float32 matrices by the faster of the two libraries that torch carries, where both are as precise.

Torch multiplies float32 matrices on a processor by MKL, which on processors of other makers than Intel leaves half of
their speed unused; oneDNN does not (docs/benchmarks.md). Torch hands a product to oneDNN where bfloat16 is allowed
inside of it, and oneDNN takes that permission only on processors with matrix tiles. A probe makes sure of that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_PROBED = ((256, 256, 256), (2048, 512, 32))
_ROUNDING = 1e-6
"""Relative error of a product in float32; one with bfloat16 inside has a thousand times more."""

_lock = threading.Lock()
_users = 0
_before = "none"


@cache
def has_faster_products() -> bool:
    """Whether oneDNN is the faster library on this processor, and as precise there as MKL."""
    described = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(described.get("avx512_f")) and "Intel" not in described.get("cpu_name", "") and _is_precise()


def _is_precise() -> bool:
    generator = torch.Generator().manual_seed(0)
    for rows, inner, columns in _PROBED:
        left = torch.randn(rows, inner, generator=generator)
        right = torch.randn(inner, columns, generator=generator)
        with _one_dnn():
            found = left @ right
        exact = left.double() @ right.double()
        if (found - exact).norm() > _ROUNDING * exact.norm():
            return False
    return True


@contextmanager
def faster_products() -> Iterator[None]:
    """Multiply float32 matrices by the faster library within: for plain products only.

    Torch's attention for processors multiplies many small matrices, each of which this makes slower.
    """
    if not has_faster_products():
        yield
        return
    with _one_dnn():
        yield


def frozen_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`functional.linear` by faster products where nothing but the inputs asks for a gradient."""
    if weight.requires_grad or inputs.dtype != torch.float32 or torch.is_autocast_enabled(inputs.device.type):
        return functional.linear(inputs, weight, bias)
    output: Tensor = _FrozenLinear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return output


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(weight)
        with faster_products():
            return functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = context.saved_tensors
        with faster_products():
            return gradient @ weight, None, None


@contextmanager
def _one_dnn() -> Iterator[None]:
    """Torch's setting belongs to the whole process, so the last thread that leaves puts it back."""
    global _users, _before  # noqa: PLW0603 (as the setting itself)
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # missing in its types
    with _lock:
        if not _users:
            _before, setting.fp32_precision = setting.fp32_precision, "bf16"
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                setting.fp32_precision = _before
