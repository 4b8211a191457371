"""How an audit scores, as a person asks for it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.nouns import Target
from gradtrail.tasks.core.measured_fidelity import Question


@dataclass(frozen=True, kw_only=True)
class AuditOptions(MethodSpec):
    """A method, and what an audit does with it.

    Attributes:
        target: what is measured of an output: what the model `emitted`, or the true `label`.
        top_k: proponents and opponents kept an output.
        device: where the outputs are measured.
        every_checkpoint: score with all checkpoints together, for methods that can.
        question: `now` or `training`, as a calibration fitted them to short and long further training; None asks
            neither.
        index: beginning of the id of the index to score; empty takes the calibrated one, else the newest.
    """

    target: Target = "emitted"
    top_k: int = 10
    device: str = "cpu"
    every_checkpoint: bool = False
    question: Question | None = None
    index: str = ""

    def with_method(self, spec: MethodSpec) -> Self:
        """The same with another method."""
        return replace(self, **{each.name: getattr(spec, each.name) for each in fields(MethodSpec)})
