"""How an audit scores, as a person asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from gradtrail.nouns import Target
from gradtrail.tasks.audit.preparing import MethodOptions
from gradtrail.tasks.core.measured_fidelity import HorizonName

AUTO = "auto"
DEFAULT_METHOD = "influence"


@dataclass(frozen=True)
class AuditOptions:
    """How an audit scores.

    Attributes:
        method: name in the registry of methods; see `gradtrail methods`. `auto` is what a calibration found best, else
            the default method.
        target: what is measured of an output: what the model `emitted`, or the true `label`.
        top_k: proponents and opponents kept an output.
        curvature: kind of curvature for methods that need one; empty picks `fisher` where the adapter can sample.
        relative_damping: part of the mean eigenvalue added to the curvature.
        absolute_damping: absolute part, for example the objective's ridge.
        horizon: learning rate × steps of further training that method `horizon` speaks about, or of the training that
            `unrolled` does; 0 is 1 / damping, or what the checkpoints were registered with.
        every_checkpoint: score with all checkpoints together, for methods that can.
        named_horizon: `now` or `training`, as a calibration fitted them to short and long further training; empty asks
            for neither.
        weighting: `auto` is what the calibration chose with the method, else uniform; `uniform`, the beginning of a
            weighting's id, or `aspect:ATTRIBUTE`.
        index: beginning of the id of the index to score; empty takes the calibrated one, else the newest.
        device: where the outputs are measured.
    """

    method: str = AUTO
    target: Target = "emitted"
    top_k: int = 10
    curvature: str = ""
    relative_damping: float = 1.0
    absolute_damping: float = 0.0
    device: str = "cpu"
    horizon: float = 0.0
    every_checkpoint: bool = False
    named_horizon: HorizonName = ""
    weighting: str = AUTO
    index: str = ""

    @property
    def method_options(self) -> MethodOptions:
        """The part that says how the method works."""
        return MethodOptions(
            self.method,
            self.curvature,
            self.relative_damping,
            self.absolute_damping,
            self.horizon,
            self.device,
            self.target,
        )
