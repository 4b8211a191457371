"""The plan of an index: which parameter groups are measured, how each is projected, and what that leaves out."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradtrail.attribution.features.grouping import MeasuredPart, measured_parts
from gradtrail.attribution.layers.registry import GradientShape, Projections, find_rule
from gradtrail.attribution.projection.allocation import allocate
from gradtrail.attribution.projection.eigen import EigenBasis
from gradtrail.attribution.projection.random import PROJECTION_VERSION, ProjectionSide, projection_matrix
from gradtrail.digests import sha256_file
from gradtrail.errors import ModelError, StoreError, UsageError
from gradtrail.nouns import Weighting

_DTYPES = {"float32": torch.float32, "float16": torch.float32, "int8": torch.float32, "float64": torch.float64}
"""What features are computed in, by what they are stored as."""
_LOWER = {"none": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class FeatureSettings:
    """How gradients are reduced.

    `group_dimension` is the largest number of values stored per group; a group that is no larger is stored exactly.
    `total_dimension` is a budget for all groups together instead, shared out by their sizes (`allocate`).
    `exclude` names what to leave out, as shell patterns on names of modules and parameters: it counts as uncovered.
    `dtype` is what vectors are stored as; a store may keep float16, or int8 with a scale for each row and group.
    Parameters without a layer rule are measured by autograd itself (`gradtrail.attribution.gradients.fallback`);
    `fallback` False leaves them uncovered instead, and `fallback_for` names modules to measure so despite their rule.
    `autocast` runs the model in lower precision where torch does; losses, projections and sums stay as they are.
    `stored_weighting` is the weighting under which a store keeps vectors (`gradtrail.attribution.features.weights`).
    """

    group_dimension: int = 256
    seed: int = 0
    dtype: Literal["float32", "float16", "int8", "float64"] = "float32"
    exclude: tuple[str, ...] = ()
    fallback: bool = True
    fallback_for: tuple[str, ...] = ()
    total_dimension: int | None = None
    autocast: Literal["none", "bfloat16"] = "none"
    stored_weighting: Weighting | None = None

    def optional(self) -> dict[str, Any]:
        """What differs from the defaults, for `FeaturePlan.config`: the ids of other indexes stay as they are."""
        found: dict[str, Any] = {} if self.fallback else {"fallback": False}
        if self.fallback_for:
            found["fallback_for"] = list(self.fallback_for)
        if self.total_dimension is not None:
            found["total_dimension"] = self.total_dimension
        if self.autocast != "none":
            found["autocast"] = self.autocast
        if self.stored_weighting is not None:
            weights = dict(self.stored_weighting.group_weights)
            found["stored_weighting"] = {"objective": self.stored_weighting.objective, "group_weights": weights}
        return found

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> FeatureSettings:
        """The settings that gave `FeaturePlan.config`."""
        return cls(
            group_dimension=config["group_dimension"],
            seed=config["projection"]["seed"],
            dtype=config["dtype"],
            exclude=tuple(config["exclude"]),
            fallback=config.get("fallback", True),
            fallback_for=tuple(config.get("fallback_for", ())),
            total_dimension=config.get("total_dimension"),
            autocast=config.get("autocast", "none"),
            stored_weighting=Weighting(**config["stored_weighting"]) if "stored_weighting" in config else None,
        )


@dataclass(frozen=True)
class Group:
    """One layer: weight and bias together, d_out × d_in per block, reduced to p_out × p_in.

    `modules` holds more than one name when layers share all their parameters: their gradients add up. It is empty for a
    single parameter without a layer rule.
    """

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    dimension: int
    exact: bool
    blocks: int
    d_out: int
    d_in: int
    p_out: int
    p_in: int


@dataclass(frozen=True)
class FeaturePlan:
    """Every group in the order of its columns, and the parameters no group covers.

    Parameters are counted over those that training moves; `uncovered` and `frozen` name the others of either kind.
    `layer_rules` are those of other packages that measure some of it, each with the digest of its source file.
    """

    groups: tuple[Group, ...]
    settings: FeatureSettings
    covered_parameters: int
    total_parameters: int
    uncovered: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    measurement: str = "loss"
    basis: EigenBasis | None = None
    layer_rules: Mapping[str, str] = field(default_factory=dict)

    @property
    def projection_kind(self) -> Literal["random", "eigen"]:
        """`eigen` where an eigenbasis projects, at least the layers that have Kronecker factors."""
        return "random" if self.basis is None else "eigen"

    @cached_property
    def dimension(self) -> int:
        """Number of columns of a feature vector."""
        return sum(group.dimension for group in self.groups)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The columns of each group."""
        ends = list(accumulate(group.dimension for group in self.groups))
        return tuple(slice(end - group.dimension, end) for end, group in zip(ends, self.groups, strict=True))

    @property
    def stored_weighting(self) -> Weighting | None:
        """The weighting under which rows are stored; None for the uniform one."""
        return self.settings.stored_weighting

    @property
    def dtype(self) -> torch.dtype:
        """The type feature vectors are computed in: that of `settings.dtype`, but at least float32."""
        return _DTYPES[self.settings.dtype]

    @property
    def lower_precision(self) -> torch.dtype | None:
        """What the model runs in by autocast; None for its own precision."""
        return _LOWER[self.settings.autocast]

    def config(self) -> dict[str, Any]:
        """Everything that determines the numbers of an index besides checkpoint and data; JSON-able, part of its id."""
        return {
            "measurement": self.measurement,
            "groups": [
                {
                    "name": group.name,
                    "parameters": list(group.parameters),
                    "dimension": group.dimension,
                    "exact": group.exact,
                    "projected": [group.p_out, group.p_in],
                }
                for group in self.groups
            ],
            "group_dimension": self.settings.group_dimension,
            "exclude": list(self.settings.exclude),
            **self.settings.optional(),
            **({"layer_rules": dict(self.layer_rules)} if self.layer_rules else {}),
            "projection": self._projection_config(),
            "dtype": self.settings.dtype,
        }

    def projections(self, dtype: torch.dtype, device: str | torch.device = "cpu") -> tuple[Projections, ...]:
        """The projection matrices of every group, in the order of `groups`."""
        return tuple(_projections(group, self.settings.seed, dtype, device, self.basis) for group in self.groups)

    def _projection_config(self) -> dict[str, Any]:
        if self.basis is not None:
            return self.basis.config(self.settings.seed)
        return {"kind": "random", "seed": self.settings.seed, "version": PROJECTION_VERSION}

    def group_squares(self, vectors: Tensor) -> Tensor:
        """Squared norm per group, (batch, groups) float64, of unweighted vectors (batch, dimension)."""
        squares = vectors.to(torch.float64, copy=True).square_()
        return torch.stack([squares[:, columns].sum(1) for columns in self.slices], dim=1)


def plan_features(model: nn.Module, settings: FeatureSettings | None = None) -> FeaturePlan:
    """Choose the groups of `model`, in the order of its modules; parameters with `requires_grad` False have none.

    Raises:
        ModelError: when no parameter is covered, or when layers share some of their parameters and no fallback may
            measure them.
        UsageError: when a setting makes no sense, or the total dimension is too small for the groups.
    """
    settings = settings or FeatureSettings()
    if settings.group_dimension < 1 or settings.dtype not in _DTYPES or settings.autocast not in _LOWER:
        raise UsageError(
            f"Feature settings with group_dimension={settings.group_dimension}, dtype={settings.dtype!r} and "
            f"autocast={settings.autocast!r}.",
            f"Choose a group_dimension of at least 1, a dtype of {', '.join(_DTYPES)}, and an autocast of "
            f"{', '.join(_LOWER)}.",
        )
    parts = measured_parts(model, settings.exclude, settings.fallback, settings.fallback_for)
    if settings.total_dimension is None or not parts:
        dimensions = [settings.group_dimension] * len(parts)
    else:
        dimensions = allocate([part.shape.size for part in parts], settings.total_dimension)
    groups = tuple(_group(*pair) for pair in zip(parts, dimensions, strict=True))
    covered = {name for group in groups for name in group.parameters}
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = tuple(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
    if frozen and not sizes:
        raise ModelError(
            f"Every parameter of {type(model).__name__} is frozen, for example {frozen[0]}: no training moves it.",
            "Let build_model set requires_grad where the model learns.",
        )
    if not groups:
        raise ModelError(
            f"No parameter of {type(model).__name__} is covered; its parameters are "
            f"{', '.join(list(sizes)[:5]) or 'none'}.",
            "Look at FeatureSettings.exclude and FeatureSettings.fallback, or add a layer rule "
            "(docs/extending/layer-rule.md).",
        )
    return FeaturePlan(
        groups=groups,
        settings=settings,
        covered_parameters=sum(sizes[name] for name in covered),
        total_parameters=sum(sizes.values()),
        uncovered=tuple(name for name in sizes if name not in covered),
        frozen=frozen,
        layer_rules=foreign_rules(model, groups),
    )


def plan_from_config(model: nn.Module, config: Mapping[str, Any], basis: EigenBasis | None = None) -> FeaturePlan:
    """The plan of an existing index, from the configuration in its id, and its eigenbasis where it has one.

    Raises:
        StoreError: when this version of gradtrail, or this model, would measure something else.
    """
    plan = replace(plan_features(model, FeatureSettings.of_config(config)), basis=basis)
    if plan.config() != config:
        changed = sorted(key for key, value in plan.config().items() if config.get(key) != value)
        raise StoreError(
            f"The index was measured with other {', '.join(changed)} than {type(model).__name__} gives now.",
            "Use the model version the index was made for, or index again, and calibrate again.",
        )
    return plan


def foreign_rules(model: nn.Module, groups: Iterable[Group]) -> dict[str, str]:
    """The layer rules of other packages that measure the groups: `module:Class`, and its source file's sha256."""
    found = {}
    for name in (name for group in groups for name in group.modules):
        kind = type(find_rule(model.get_submodule(name)))
        if kind.__module__.partition(".")[0] not in ("gradtrail", "builtins"):
            found[f"{kind.__module__}:{kind.__qualname__}"] = sha256_file(Path(inspect.getfile(kind)))
    return found


def _group(part: MeasuredPart, dimension: int) -> Group:
    shape = part.shape
    exact = shape.size <= dimension
    p_out, p_in = (shape.rows, shape.columns) if exact else _projected_sides(shape, dimension)
    return Group(
        name=part.name,
        modules=part.modules,
        parameters=part.parameters,
        dimension=shape.size if exact else p_out * p_in,
        exact=exact,
        blocks=shape.blocks,
        d_out=shape.rows,
        d_in=shape.columns,
        p_out=p_out,
        p_in=p_in,
    )


def _projected_sides(shape: GradientShape, dimension: int) -> tuple[int, int]:
    """Equal sides, unless one side of the gradient is smaller: it is kept whole and the other gets the rest."""
    side = isqrt(dimension)
    outputs, inputs = shape.blocks * shape.rows, shape.blocks * shape.columns
    if outputs <= side:
        return outputs, min(inputs, dimension // outputs)
    if inputs <= side:
        return min(outputs, dimension // inputs), inputs
    return side, side


def _projections(
    group: Group, seed: int, dtype: torch.dtype, device: str | torch.device, basis: EigenBasis | None = None
) -> Projections:
    def matrix(side: ProjectionSide, width: int, projected: int) -> Tensor:
        if basis is not None:
            fitted = basis.matrix(group.name, side, (group.blocks, width, projected))
            if fitted is not None:
                return fitted.to(device=device, dtype=dtype)
        if group.exact:
            return torch.eye(width, dtype=dtype, device=device).expand(group.blocks, width, width)
        rows = group.blocks * width
        if projected == rows:
            whole = torch.eye(rows, dtype=dtype)
        else:
            whole = projection_matrix(rows, projected, seed=seed, group=group.name, side=side, dtype=dtype)
        return whole.reshape(group.blocks, width, projected).to(device)

    return Projections(
        outputs=matrix("outputs", group.d_out, group.p_out),
        inputs=matrix("inputs", group.d_in, group.p_in),
        exact=group.exact,
    )
