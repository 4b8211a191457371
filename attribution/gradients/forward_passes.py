"""Batches run forward with hooks on, by routes that are found with the first one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from torch import Tensor

from gradtrail.attribution.adapters.layout import BatchLayout
from gradtrail.attribution.gradients.eval_mode import frozen_in_eval
from gradtrail.attribution.gradients.fallback import Fallback, in_short
from gradtrail.attribution.gradients.hooks import HookedForward, UnfitError
from gradtrail.attribution.gradients.oracle import autograd_vector, coarsest_dtype, rounding, unlike_autograd
from gradtrail.attribution.gradients.routes import CallLayout, Routes, call_layout, positions_of
from gradtrail.attribution.gradients.tracked_model import TrackedModel
from gradtrail.attribution.gradients.watching import Watching
from gradtrail.errors import AttributionWarning
from gradtrail.nouns import Example

_SCALES = (1.0, -0.5)
"""What the losses of the same example twice are multiplied by, so that neither gradient passes for the other."""
_LOOKED_AT = 8
_TRIES = 3


@contextmanager
def hooked_forward(tracked: TrackedModel, examples: Sequence[Example]) -> Iterator[HookedForward]:
    """Run `examples` forward with hooks on; hooks, modes and flags are undone on leaving, also after an exception.

    Raises:
        UnfitError: when a layer cannot be measured by its rule, and the plan allows no fallback.
    """
    prepare(tracked, examples)
    with frozen_in_eval(tracked.model), ExitStack() as stack:
        yield _forward(tracked, examples, stack)


def prepare(tracked: TrackedModel, examples: Sequence[Example]) -> None:
    """Find the routes of the tracked model by some of the examples, unless it has them."""
    if tracked.routes is None:
        tracked.routes = find_routes(tracked, _largest(tracked, examples[:_LOOKED_AT]))


def _largest(tracked: TrackedModel, examples: Sequence[Example]) -> Example:
    """The example with the most numbers: in a text of one word, a word and a text look the same."""
    if len(examples) == 1:
        return examples[0]
    batches = (tracked.adapter.collate([example]) for example in examples)
    sizes = [sum(tensor.numel() for tensor in batch.tensors()) for batch in batches]
    return examples[sizes.index(max(sizes))]


def _forward(tracked: TrackedModel, examples: Sequence[Example], stack: ExitStack) -> HookedForward:
    """The hooked pass of a batch; a group that its rule cannot measure there is measured by autograd from then on."""
    while True:
        routes = tracked.routes or Routes()
        with ExitStack() as own:
            forward = HookedForward(tracked, examples, routes)
            own.callback(forward.release)
            forward.attach(own)
            try:
                forward.run(tracked.adapter.collate(examples).to(tracked.device))
            except UnfitError as fault:
                if not tracked.plan.settings.fallback:
                    raise
                tracked.routes = _routes(tracked, routes, {fault.place: fault.what})
            else:
                stack.enter_context(own.pop_all())
                return forward


def find_routes(tracked: TrackedModel, example: Example) -> Routes:
    """How each group is measured, from one example and the same one twice: by its rule, else by autograd.

    A model that does not run on them is left to those who run it: its layers count as called with rows of examples.
    """
    plan = tracked.plan
    bare = Routes(by_autograd=frozenset(place for place, group in enumerate(plan.groups) if not group.modules))
    try:
        lone, pair = ([example] * count for count in (1, 2))
        one, two = (tracked.adapter.collate(each).to(tracked.device) for each in (lone, pair))
        once, twice = Watching(tracked, lone, Routes()), Watching(tracked, pair, Routes())
        outputs, expected = once.watch(one), twice.watch(two)
    except Exception:  # a model that cannot run here fails by name in the checks before the pass, or in the pass itself
        return _routes(tracked, bare, {})
    batch = BatchLayout.between(one, two)
    bare = replace(bare, batch=batch, dtype=coarsest_dtype(tracked.model, plan.lower_precision, outputs.dtype))
    positions = positions_of(one, batch)
    layouts, unfit = dict[str, CallLayout](), dict[int, str]()
    for use in tracked.every_use:
        layout = call_layout(once.shapes[use.name], twice.shapes[use.name], positions, use.rule.sequential)
        if layout is not None and (layout.dimension != 0 or use.name not in once.chosen):
            layouts[use.name] = layout
        elif plan.settings.fallback and use.place not in tracked.supposed:
            unfit[use.place] = f"layer {use.name} is {once.told(use.name)}"
    routes = replace(bare, layouts=layouts)
    return (
        _judged(tracked, routes, unfit, example, expected)
        if plan.settings.fallback
        else _routes(tracked, routes, unfit)
    )


def _judged(tracked: TrackedModel, routes: Routes, unfit: dict[int, str], example: Example, expected: Tensor) -> Routes:
    """`routes` without the rules whose gradient of the same example twice is not autograd's.

    Rules that are supposed only have to be shown right. `expected` are the model's outputs without hooks.
    """
    by_use = _by_use(tracked, replace(routes, by_autograd=routes.by_autograd | set(unfit)), example, expected)
    routes = replace(routes, by_use=by_use, by_autograd=routes.by_autograd - by_use)
    supposed = {use.place for use in tracked.uses if use.place in tracked.supposed and use.name in routes.layouts}
    for _ in range(_TRIES):
        by_autograd = (routes.by_autograd - supposed) | set(unfit)
        wrong, right = _compared(tracked, replace(routes, by_autograd=by_autograd), example, expected)
        unfit |= {place: why for place, why in wrong.items() if place not in tracked.supposed}
        if right is not None:
            supposed &= right
            break
        if not wrong:
            supposed = set()
    else:
        supposed = set()
    return _routes(tracked, replace(routes, by_autograd=routes.by_autograd - supposed), unfit)


def _by_use(tracked: TrackedModel, routes: Routes, example: Example, expected: Tensor) -> frozenset[int]:
    """The places of bare parameters whose gradient is autograd's where it is taken at their meetings with examples."""
    bare = {place for place, group in enumerate(tracked.plan.groups) if not group.modules}
    candidates = (routes.by_autograd & bare) - tracked.supposed
    for _ in range(_TRIES if candidates else 0):
        trial = replace(routes, by_use=frozenset(candidates), by_autograd=routes.by_autograd - candidates)
        unfit = set[int]()
        try:
            found = _twice(tracked, trial, example, expected, unfit=unfit)
            if found is not None:
                wanted = autograd_vector(tracked, example)
                silent = {place for place in candidates if not wanted[tracked.plan.slices[place]].any()}
                return frozenset(candidates - silent - _unlike(found, wanted, tracked, trial))
        except Exception:  # no other way than autograd is known for them
            return frozenset()
        if not unfit:
            return frozenset()
        candidates -= unfit
    return frozenset()


def _routes(tracked: TrackedModel, routes: Routes, unfit: Mapping[int, str]) -> Routes:
    """`routes` with what is `unfit` for a rule left to autograd, which is said."""
    plan = tracked.plan
    if unfit:
        names = [plan.groups[place].name for place in sorted(unfit)]
        warnings.warn(
            f"{in_short(names)}: measured by autograd, since {next(iter(unfit.values()))}",
            AttributionWarning,
            stacklevel=2,
        )
    places = sorted(routes.by_autograd | set(unfit))
    groups = [tracked.whole_group(place) for place in places]
    fallback = (
        Fallback(tracked.adapter, tracked.run, tracked.model, groups, routes.batch, tracked.device) if groups else None
    )
    return replace(routes, by_autograd=frozenset(places), by_use=routes.by_use - set(places), fallback=fallback)


def _compared(
    tracked: TrackedModel, routes: Routes, example: Example, expected: Tensor
) -> tuple[dict[int, str], set[int] | None]:
    """The places that rules get wrong, with why, and those whose own gradient is right; None where nothing was seen."""
    plan = tracked.plan
    if len(routes.by_autograd) == len(plan.groups):
        return {}, set()
    shared = {use.place: use.name for use in tracked.every_use if routes.shares(use.name)}
    because = {place: f"layer {name} runs once for all examples" for place, name in shared.items()}
    try:
        found = _twice(tracked, routes, example, expected)
        if found is None:
            return because, None
        wanted = autograd_vector(tracked, example)
        wrong = _unlike(found, wanted, tracked, routes)
        if wrong and tracked.adapter.position_mask(tracked.adapter.collate([example])) is not None:
            # A mask that hides what counts is the adapter's fault, which the checks before a pass name.
            unmasked = _twice(tracked, routes, example, expected, masked=False)
            wrong &= set() if unmasked is None else _unlike(unmasked, wanted, tracked, routes)
    except Exception:  # nothing was compared: the checks before the pass compare with autograd, and refuse
        return because, None
    why = {place: f"{plan.groups[place].name} is used in another way too than by calling it" for place in sorted(wrong)}
    right = {
        place
        for place, columns in enumerate(plan.slices)
        if (size := wanted[columns].norm()) > 0
        and (found[0, columns] - wanted[columns]).norm() <= rounding(routes.dtype) * size
    }
    return why, right - wrong


def _unlike(found: Tensor, wanted: Tensor, tracked: TrackedModel, routes: Routes) -> set[int]:
    """The places that a rule measures, and not as autograd does: in the first or in the second row."""
    if not (found.isfinite().all() and wanted.isfinite().all()):
        return set()
    wrong = {
        place
        for row, scale in zip(found, _SCALES, strict=True)
        for place in unlike_autograd(row, scale * wanted, tracked.plan, routes.dtype)
    }
    return wrong - routes.by_autograd


def _twice(
    tracked: TrackedModel,
    routes: Routes,
    example: Example,
    expected: Tensor,
    *,
    masked: bool = True,
    unfit: set[int] | None = None,
) -> Tensor | None:
    """Features of the same example twice, by rules alone, or None where hooks change the outputs.

    Also None where parameters are used in unknown ways; their places are added to `unfit`, if it is given.
    """
    examples = [example, example]
    with frozen_in_eval(tracked.model), ExitStack() as stack:
        forward = HookedForward(tracked, examples, routes)
        forward.masked = masked
        forward.judging = unfit is not None
        stack.callback(forward.release)
        forward.attach(stack)
        forward.run(tracked.adapter.collate(examples).to(tracked.device))
        if unfit is not None:
            unfit |= forward.unknown_uses
            if unfit:
                return None
        outputs = forward.outputs.detach()
        if outputs.shape != expected.shape:
            return None
        finite = expected.isfinite()
        scale = expected[finite].abs().max() if finite.any() else expected.new_zeros(())
        if not ((outputs - expected)[finite].abs() <= rounding(routes.dtype) * scale).all():
            return None
        losses = tracked.adapter.losses(forward.outputs, forward.batch)
        return forward.vectors(losses * losses.new_tensor(_SCALES))
