"""What an attribution method is, and the registry that finds one by name (METHODS: M).

A method is a function from unweighted query features to preconditioned ones, registered under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from gradtrail.attribution.adapters.base import ModelAdapter
from gradtrail.attribution.curvature.damping import DEFAULT_DAMPING, Damping
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.methods.needs import Need
from gradtrail.attribution.methods.spec import DEFAULT_METHOD, MethodSpec
from gradtrail.errors import UsageError
from gradtrail.nouns import Weighting
from gradtrail.registry import Registry

TrainScale = Literal["none", "inverse_norm"]
Combination = Literal["one", "sum", "mean_margin"]
Fitted = TypeVar("Fitted")
Spec = TypeVar("Spec", bound=MethodSpec)


@dataclass(frozen=True)
class Preparation:
    """What a method may use; all tensors are float64.

    `vectors` (queries, dimension) are unweighted, `squared_norms` (queries, groups) theirs, `losses` (queries,).
    `fitted` holds what the method needs, by the name of the need.
    """

    spec: MethodSpec
    vectors: Tensor
    squared_norms: Tensor
    losses: Tensor
    plan: FeaturePlan
    fitted: Mapping[str, Any]
    stored_weighting: Weighting | None = None

    def get(self, need: Need[Fitted]) -> Fitted:
        """What was fitted for the need, or the UsageError that says what the method is missing."""
        found: Fitted | None = self.fitted.get(need.name)
        if found is None:
            raise UsageError(f"Method {self.spec.method} needs {need.description}.", need.remedy)
        return found

    @property
    def damping(self) -> Damping:
        """Of the spec, else the default."""
        return self.spec.damping or DEFAULT_DAMPING


@dataclass(frozen=True)
class Method:
    """One way to attribute.

    `needs` names what must be computed beforehand, `train_scale` is a(z) of equation (1), `combination` how several
    indexes (one a checkpoint) make one score: `one` means that they do not. `carry` gives what is left of queries for
    the checkpoint before; without it, each checkpoint takes its own.
    """

    name: str
    source: str
    description: str
    cost: str
    needs: tuple[Need[Any], ...]
    train_scale: TrainScale
    combination: Combination
    precondition: Callable[[Preparation], Tensor]
    carry: Callable[[Preparation], Tensor] | None = None

    @property
    def takes_every_checkpoint(self) -> bool:
        """Whether the method is of no use on one checkpoint."""
        return any(need.recorded for need in self.needs)

    @property
    def needs_in_words(self) -> str:
        """What must be computed beforehand, for people."""
        return "; ".join(need.description for need in self.needs) or "nothing more"


METHODS: Registry[str, Method] = Registry("gradtrail.attribution.methods.rules")
"""Every method by name."""


def attribution_method(
    *,
    source: str,
    description: str,
    cost: str,
    needs: tuple[Need[Any], ...] = (),
    train_scale: TrainScale = "none",
    combination: Combination = "one",
    carry: Callable[[Preparation], Tensor] | None = None,
) -> Callable[[Callable[[Preparation], Tensor]], Callable[[Preparation], Tensor]]:
    """Register the decorated function as a method under its own name.

    One of another package is registered as `module:function`, by which audits and calibrations name it.
    """

    def register(precondition: Callable[[Preparation], Tensor]) -> Callable[[Preparation], Tensor]:
        own = precondition.__module__.startswith("gradtrail.")
        name = precondition.__name__ if own else f"{precondition.__module__}:{precondition.__name__}"
        METHODS.add(name, Method(name, source, description, cost, needs, train_scale, combination, precondition, carry))
        return precondition

    return register


def find_method(name: str | None) -> Method:
    """The method called `name`, the default one for None; UsageError lists the known ones otherwise."""
    name = name or DEFAULT_METHOD
    if name not in METHODS:
        raise UsageError(f"There is no attribution method {name!r}.", f"Choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def settled(spec: Spec, adapter: ModelAdapter) -> Spec:
    """The spec with the kind of curvature and the damping that its method takes, and None for what it takes none of.

    Raises:
        UsageError: for an unknown method or kind of curvature, and for a horizon where the method has none.
        ModelError: when the adapter does not support the kind of curvature.
    """
    method = find_method(spec.method)
    unrolls = any(need.name == "segment" for need in method.needs)
    kinds = [need.kind(spec, adapter) for need in method.needs if need.kind]
    if spec.horizon is not None and method.name != "horizon" and not unrolls:
        raise UsageError(f"Method {method.name} has no horizon.", "Choose method horizon, or leave it out.")
    damped = kinds and spec.horizon is None and not unrolls
    return replace(
        spec,
        method=method.name,
        curvature=kinds[0] if kinds else None,
        damping=(spec.damping or DEFAULT_DAMPING) if damped else None,
    )


def inverse_norms(squared_norms: Tensor) -> Tensor:
    """1/‖φ‖ over all groups, (batch,) float64 from (batch, groups); 0 where the norm is 0, so that its scores are 0."""
    norms = squared_norms.sum(1).sqrt()
    return torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
