"""A forward pass that changes nothing, and notes what layers see: shapes, and rows that were chosen by values."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gradtrail.attribution.adapters.base import Batch, model_outputs
from gradtrail.attribution.gradients.eval_mode import frozen_in_eval
from gradtrail.attribution.gradients.hooks import HookedForward
from gradtrail.attribution.gradients.routes import Routes, Shapes
from gradtrail.attribution.gradients.tracked_model import LayerUse, TrackedModel
from gradtrail.nouns import Example

_CHOOSING = {"nonzero", "nonzero_numpy", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
_CUTTING = {"slice", "split_with_sizes", "repeat_interleave"}
"""Numbers that were read from tensors may say where; tensors do not tell."""
_SHOWN = 2


class Watching(HookedForward):
    """Notes the `shapes` of what planned layers get and give, call by call, and the layers that get `chosen` rows."""

    def __init__(self, tracked: TrackedModel, examples: Sequence[Example], routes: Routes) -> None:
        super().__init__(tracked, examples, routes)
        self.shapes = defaultdict[str, list[Shapes]](list)
        self.chosen: set[str] = set()
        self._choices = _Choices()

    def watch(self, batch: Batch) -> Tensor:
        """Run the model; returns its outputs in their own type."""
        tracked = self._tracked
        run = partial(model_outputs, tracked.adapter) if tracked.plan.lower_precision is None else tracked.run
        with frozen_in_eval(self._model), torch.no_grad(), ExitStack() as stack:
            self.attach(stack)
            if "torch._dynamo" in sys.modules:
                # A compiled model is watched as it was written.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            with self._choices:
                return run(self._model, batch.with_each(torch.clone))

    def told(self, name: str) -> str:
        """How a layer is called, in words."""
        if name in self.chosen:
            return "called with rows that were chosen by their values"
        shapes = [str(tuple(given)) for given, _ in self.shapes[name][:_SHOWN]]
        return f"called with {', '.join(shapes)} for one example" if shapes else "never called"

    def _remember(self, use: LayerUse, inputs: Tensor, output: Tensor) -> Tensor:
        self.shapes[use.name].append((inputs.shape, output.shape))
        if self._choices.hold(inputs):
            self.chosen.add(use.name)
        return output


class _Choices(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Follows tensors of which values decided how many rows they have: how many words go to an expert, say.

    Such a number may equal the number of examples by chance, and then nothing in the shapes tells.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._held: dict[int, Tensor] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to skip it torch would load its compiler and SymPy, 90 MB, where nothing is compiled."""
        return False

    def hold(self, tensor: Tensor) -> bool:
        """Whether values decided the number of rows of this tensor."""
        return id(tensor) in self._held

    def __torch_dispatch__(
        self,
        operation: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = operation(*args, **(kwargs or {}))
        name = operation.overloadpacket.__name__
        given = list(_tensors((args, kwargs or {})))
        own = {id(tensor) for tensor in given}
        by_values = name in _CHOOSING or (name == "index" and any(_is_mask(tensor) for tensor in given[1:]))
        lengths = {len(tensor) for tensor in given if tensor.ndim and self.hold(tensor)}
        for tensor in _tensors(found):
            cut = name in _CUTTING and given[0].ndim > 0 and tensor.ndim > 0 and len(tensor) != len(given[0])
            if id(tensor) not in own and tensor.ndim and (by_values or cut or len(tensor) in lengths):
                self._held[id(tensor)] = tensor
        return found


def _is_mask(tensor: Tensor) -> bool:
    return tensor.dtype in {torch.bool, torch.uint8}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for part in value:
            yield from _tensors(part)
