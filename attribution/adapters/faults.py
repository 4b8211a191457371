"""Errors that come out of an adapter's own code, or out of the model it runs, in one sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
from torch import nn

from gradtrail.attribution.adapters.base import ModelAdapter
from gradtrail.errors import GradtrailError, ModelError
from gradtrail.nouns import Example

_LOG = logging.getLogger("gradtrail.adapter")
_LONGEST = 2000
_REMEDIES = {
    "build_model": "Let build_model return the architecture; it is called without arguments.",
    "training_data": "Let training_data return a list of gradtrail.Example, or any object with len and [position].",
    "collate": "Give inputs and targets that can be stacked, or write collate in the adapter.",
    "outputs": "See what the model's forward takes: a tuple of inputs becomes positional and a dict keyword arguments. "
    "Give examples such inputs in the type of input_dtype, or write outputs in the adapter.",
    "losses": "See that outputs and targets have the shapes and types that the loss takes (docs/recipes.md has losses "
    "by recipe).",
}
_CORRECT = "Correct the method."
_TRACEBACK = " GRADTRAIL_TRACEBACK=1 shows where."


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether torch could not get memory: on a GPU by its own exception, elsewhere only its message says so."""
    if isinstance(fault, torch.OutOfMemoryError):
        return True
    signs = ("out of memory", "DefaultCPUAllocator", "can't allocate memory")
    return isinstance(fault, RuntimeError) and any(sign in str(fault) for sign in signs)


def adapter_fault(fault: Exception, example_id: str = "") -> ModelError | None:
    """An exception in words, where an adapter's method or its model's forward raised it; None for any other."""
    if isinstance(fault, GradtrailError | OSError | MemoryError) or is_out_of_memory(fault):
        return None
    adapter, method, module = _origin(fault)
    if adapter is None:
        return None
    kind, cause = type(adapter).__name__, f"{type(fault).__name__}: {_in_one_line(fault)}"
    over = f" over example {example_id}" if example_id else ""
    what = f"{kind}.{method} fails{over}: {cause}."
    if module:
        what = f"{module}.forward, which {kind}.{method} runs, fails{over}: {cause}."
    return ModelError(what, _REMEDIES.get(method, _CORRECT) + _TRACEBACK)


@contextmanager
def plain_faults(examples: Sequence[Example] = (), fails: Callable[[Example], object] | None = None) -> Iterator[None]:
    """Raise what an adapter's own code raises within as one sentence; the log `gradtrail.adapter` has the traceback.

    `fails` does the same with one example, to find out which of several it is.

    Raises:
        ModelError: naming method, example, cause and remedy.
    """
    try:
        yield
    except Exception as fault:
        told = adapter_fault(fault)
        if told is None:
            raise
        _LOG.debug("An adapter fails", exc_info=fault)
        raise adapter_fault(fault, _culprit(examples, fails)) or told from fault


def _culprit(examples: Sequence[Example], fails: Callable[[Example], object] | None) -> str:
    if len(examples) == 1 or fails is None:
        return examples[0].example_id if len(examples) == 1 else ""
    for example in examples:
        try:
            fails(example)
        except Exception:  # the first one that fails is who is looked for
            return example.example_id
    return ""


def _in_one_line(fault: Exception) -> str:
    words = " ".join(str(fault).split()).rstrip(".")
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"


def _origin(fault: Exception) -> tuple[ModelAdapter | None, str, str]:
    """The adapter in the traceback, its outermost method there, and the innermost module whose forward fails."""
    adapter, method, module = None, "", ""
    trace = fault.__traceback__
    while trace is not None:
        owner = _owner(trace.tb_frame)
        name = trace.tb_frame.f_code.co_name
        if isinstance(owner, ModelAdapter) and adapter is None:
            adapter, method = owner, name
        elif isinstance(owner, nn.Module) and name == "forward" and adapter is not None and not _is_torch(owner):
            module = type(owner).__name__
        trace = trace.tb_next
    return adapter, method, module


def _owner(frame: FrameType) -> object:
    code = frame.f_code
    return frame.f_locals.get("self") if code.co_argcount and code.co_varnames[0] == "self" else None


def _is_torch(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "torch"
