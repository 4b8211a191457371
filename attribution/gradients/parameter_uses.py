"""Parameters that a module uses by itself: class tokens, positions, scales of a layer, looked-up tables.

Where such a parameter meets the examples, each example is given a copy of it, whose gradient is the example's own.
Whether that is right is not known from the operation alone, so whoever uses it compares a gradient with autograd's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from gradtrail.attribution.gradients.fallback import WholeGroup
from gradtrail.attribution.gradients.unrolled import is_recurrent, unrolled
from gradtrail.attribution.layers.registry import Projections

Add = Callable[[int, Tensor], None]
"""Adds features (batch, columns) to the group at a place."""

_BIAS = 2
"""A recurrent layer's biases stand so many places after the weights they belong to."""
_T = torch.Tensor
_IN_PLACE = {_T.add_, _T.mul_, _T.sub_, _T.__iadd__, _T.__imul__, _T.__isub__}
_BROADCASTING = {
    *_IN_PLACE,
    *(torch.add, torch.mul, torch.sub, torch.multiply),
    *(_T.add, _T.mul, _T.sub, _T.__add__, _T.__mul__, _T.__sub__, _T.__radd__, _T.__rmul__, _T.__rsub__),
}
_REPEATING = {_T.expand, _T.expand_as, _T.repeat, torch.broadcast_to}


class ParameterUses(TorchFunctionMode):
    """Gives `size` examples their own copies of parameters while it is entered.

    `unfit` are the places of parameters that were used in a way that is not known, and `called` of those that were.
    """

    def __init__(self, groups: Mapping[Tensor, WholeGroup], size: int, start: Callable[[Tensor], None], add: Add):
        super().__init__()
        self.unfit: set[int] = set()
        self.called: set[int] = set()
        self.kept_bytes = 0
        self._size = size
        self._start = start
        self._add = add
        # By identity, which the values keep alive: the original, the group, a leaf that stands for the parameter,
        # and what was computed from that leaf alone.
        self._known: dict[int, tuple[Tensor, WholeGroup, Tensor, Tensor]] = {}
        for parameter, group in groups.items():
            leaf = parameter.detach().requires_grad_()
            self._known[id(parameter)] = (parameter, group, leaf, leaf)

    def __torch_function__(
        self, func: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        own = [tensor for tensor in _tensors((*args, *named.values())) if id(tensor) in self._known]
        if not own:
            return func(*args, **named)
        if is_recurrent(func):
            steps = unrolled(func.__name__, args, self._size, partial(self._seen, args[2]))
            if steps is not None:
                return steps
        if len(own) == 1 and len(list(_tensors((*args, *named.values())))) == 1:
            return self._derived(func, own[0], args, named)
        if len(own) == 1:
            found = self._met(func, own[0], args, named)
            if found is not None:
                return found
        self.unfit |= {self._known[id(tensor)][1].place for tensor in own}
        return func(*args, **named)

    def _derived(self, func: Any, own: Tensor, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """What is computed from a parameter alone is followed further."""
        _, group, leaf, value = self._known[id(own)]
        plain = func(*args, **named)
        if not isinstance(plain, Tensor) or not plain.is_floating_point():
            return plain
        if func in _REPEATING and own.shape[:1] == (1,) and plain.shape == (self._size, *own.shape[1:]):
            return self._copies(own, own.shape)
        if func in _REPEATING:
            # Repeated for positions, say: of as many positions as examples the lengths would not tell.
            self.unfit.add(group.place)
            return plain
        with torch.enable_grad():
            followed = func(*[value if each is own else each for each in args], **named)
        if not followed.requires_grad:
            self.unfit.add(group.place)
            return plain
        self._known[id(plain)] = (plain, group, leaf, followed)
        return plain

    def _met(self, func: Any, own: Tensor, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The result where a parameter meets what belongs to examples; None where the meeting is of another kind."""
        if func is functional.embedding:
            return self._looked_up(own, *args, **named)
        other = next((each for each in args if isinstance(each, Tensor) and each is not own), None)
        if other is None or func not in _BROADCASTING or (func in _IN_PLACE and args[0] is own):
            return None
        shape = (1,) * (other.ndim - own.ndim) + tuple(own.shape)
        if not other.requires_grad or other.shape[:1] != (self._size,) or other.ndim == 1 or shape[0] != 1:
            return None
        if own.ndim > other.ndim:
            return None
        copies = self._copies(own, torch.Size(shape))
        return func(*[copies if each is own else each for each in args], **named)

    def _seen(self, weights: Sequence[Tensor], number: int, outputs: Tensor, inputs: Callable[[], Tensor]) -> Tensor:
        """The outputs of a product with weight `number`, from whose gradient those of weight and bias are taken."""
        has_bias = len(weights) > number + _BIAS and weights[number + _BIAS].ndim == 1
        own = [weights[number], *([weights[number + _BIAS]] if has_bias else [])]
        groups = [self._known[id(each)][1] for each in own if id(each) in self._known]
        if not groups:
            return outputs
        if not outputs.requires_grad:
            outputs = outputs.requires_grad_()
            self._start(outputs)
        self.called |= {group.place for group in groups}
        # Beside the outputs their gradient, and the steps from which it is put together.
        self.kept_bytes += 3 * outputs.nbytes

        def collect(gradient: Tensor) -> None:
            for each in own:
                if id(each) in self._known:
                    group = self._known[id(each)][1]
                    given = inputs() if each.ndim > 1 else gradient.new_ones(*gradient.shape[:2], 1)
                    self._add(group.place, _projected_product(given, gradient.detach(), group.projections))

        outputs.register_hook(collect)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return outputs

    def _copies(self, own: Tensor, shape: torch.Size) -> Tensor:
        _, group, leaf, value = self._known[id(own)]
        copies = own.detach().reshape(shape).expand(self._size, *shape[1:]).clone().requires_grad_()
        self._start(copies)
        self.kept_bytes += 2 * copies.nbytes
        self.called.add(group.place)

        def collect(gradient: Tensor) -> None:
            rows = gradient.detach().reshape(self._size, *value.shape)
            if value is not leaf:
                (rows,) = torch.autograd.grad(value, leaf, rows, is_grads_batched=True, retain_graph=True)
            self._add(group.place, group.project([rows]))

        copies.register_hook(collect)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        # Such that an operation in place does not meet a leaf.
        return copies.view_as(copies)

    def _looked_up(
        self,
        own: Tensor,
        numbers: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,  # noqa: ARG002 (the function's own arguments)
        scale_grad_by_freq: bool = False,
        sparse: bool = False,  # noqa: ARG002
    ) -> Tensor | None:
        _, group, leaf, value = self._known[id(own)]
        if value is not leaf or weight is not own or max_norm is not None or scale_grad_by_freq:
            return None
        if numbers.ndim == 1 or numbers.shape[:1] != (self._size,):
            return None
        found = functional.embedding(numbers, own.detach(), padding_idx).requires_grad_()
        self._start(found)
        self.called.add(group.place)

        def collect(gradient: Tensor) -> None:
            self._add(group.place, _projected_lookup(numbers, gradient.detach(), group.projections, padding_idx))

        found.register_hook(collect)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return found.view_as(found)


def _projected_lookup(numbers: Tensor, gradients: Tensor, projections: Projections, padding: int | None) -> Tensor:
    """Σ_t outputs[number_t] ⊗ (gradient_t · inputs) of each example, as (batch, columns)."""
    rows = projections.outputs[0][numbers.flatten(1)]
    if padding is not None:
        rows = rows * (numbers.flatten(1) != padding).unsqueeze(2)
    columns = gradients.to(rows.dtype).reshape(len(rows), rows.shape[1], -1) @ projections.inputs[0]
    return (rows.transpose(1, 2) @ columns).flatten(1)


def _projected_product(inputs: Tensor, gradients: Tensor, projections: Projections) -> Tensor:
    """Σ_t (gradient_t · outputs) ⊗ (input_t · inputs) of each example, as (batch, columns)."""
    outputs = projections.outputs[0]
    rows, columns = gradients.to(outputs.dtype) @ outputs, inputs.to(outputs.dtype) @ projections.inputs[0]
    return (rows.transpose(1, 2) @ columns).flatten(1)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
