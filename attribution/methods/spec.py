"""The choice of an attribution method, from the command line to the scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from gradtrail.attribution.curvature.damping import DEFAULT_DAMPING, Damping

AUTO = "auto"
"""How people write that a choice is left to gradtrail; in a `MethodSpec` it is None."""
UNIFORM = "uniform"
"""The name of the weighting in which every group counts alike."""
DEFAULT_METHOD = "influence"
"""The method of an audit before any calibration."""


@dataclass(frozen=True)
class MethodSpec:
    """How scores are computed. None leaves a choice to gradtrail; `auto` and an empty text are read as None.

    Attributes:
        method: name in the registry of methods; None is what a calibration found best, else `DEFAULT_METHOD`.
        curvature: `empirical`, `fisher` or `ggn`, or `ggn` or `hessian` for cg and lissa; None is the method's default:
            `fisher` where the adapter samples targets of its own losses, else `empirical`; `ggn` for cg and lissa.
        damping: of the curvature; None where the method has none.
        horizon: τ, learning rate × steps: the amount of further training that method `horizon` speaks about, or of the
            training that `unrolled` unrolls. None is 1/Λ for `horizon`, and the registered lengths for `unrolled`.
        weighting: id of the group weights or its beginning, `uniform`, or `aspect:ATTRIBUTE`; None is what a
            calibration chose with the method, else uniform.
    """

    method: str | None = None
    curvature: str | None = None
    damping: Damping | None = DEFAULT_DAMPING
    horizon: float | None = None
    weighting: str | None = None

    def __post_init__(self) -> None:
        for name in ("method", "curvature", "weighting"):
            if getattr(self, name) in (AUTO, ""):
                object.__setattr__(self, name, None)

    @property
    def parameters(self) -> dict[str, Any]:
        """What was chosen beside method and weighting, under the names that audits and calibrations record."""
        said: dict[str, Any] = {}
        if self.curvature is not None:
            said["curvature"] = self.curvature
        if self.horizon is not None:
            said["horizon"] = self.horizon
        if self.damping is not None:
            said |= {"relative_damping": self.damping.relative, "absolute_damping": self.damping.absolute}
        return said

    def to_json(self) -> dict[str, Any]:
        """The one JSON form: `parameters`, and method and weighting where they are chosen."""
        named = {"method": self.method, "weighting": self.weighting}
        return {name: value for name, value in named.items() if value is not None} | self.parameters

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:
        """Read `to_json`, or the parameters of an audit; names that are no part of a method are passed over."""
        damping = None
        if "relative_damping" in said:
            damping = Damping(said["relative_damping"], said.get("absolute_damping", 0.0))
        others = ("method", "curvature", "horizon", "weighting")
        return cls(damping=damping, **{name: said.get(name) for name in others})
