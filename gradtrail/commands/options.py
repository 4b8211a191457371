"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gradtrail.errors import UsageError

if TYPE_CHECKING:
    from gradtrail.attribution.methods.spec import MethodSpec
    from gradtrail.nouns import Target
    from gradtrail.settings import Settings
    from gradtrail.tasks.audit.options import AuditOptions

Reference = Annotated[str, typer.Argument(help="Model version: NAME@alias, NAME/3, or NAME for the newest.")]
Home = Annotated[
    Path | None,
    typer.Option("--home", help="Home folder; default: `home` of the settings, else ./.gradtrail.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]

# How an audit scores.
Method = Annotated[str, typer.Option(help="See `gradtrail methods`; auto: what calibrate found best, else influence.")]
AuditTarget = Annotated[Literal["emitted", "label"], typer.Option(help="Why it said this, or why it was wrong.")]
TopK = Annotated[int, typer.Option(help="Proponents and opponents kept per output.", min=1)]
Curvature = Annotated[str, typer.Option(help="empirical, fisher or ggn; ggn or hessian for cg and lissa.")]
RelativeDamping = Annotated[float, typer.Option(help="Multiple of the mean curvature added to it.", min=0)]
AbsoluteDamping = Annotated[float, typer.Option(help="For example the ridge of the objective.", min=0)]
Horizon = Annotated[
    str,
    typer.Option(
        help="now (how sensitive is the model?) or training (what shaped it?) as calibrated; or a number, learning "
        "rate × steps, for methods horizon and unrolled.",
        show_default=False,
    ),
]
AuditWeighting = Annotated[
    str, typer.Option(help="auto, uniform, aspect:ATTRIBUTE, or the beginning of a weighting's id.")
]
AuditIndex = Annotated[
    str, typer.Option(help="Index to score, by the beginning of its id; else the calibrated one.", show_default=False)
]
EveryCheckpoint = Annotated[
    bool,
    typer.Option("--every-checkpoint", help="Score with all checkpoints together (trak, methods with curvature)."),
]
PolicyFile = Annotated[Path | None, typer.Option("--policy", help="Policy file.", show_default=False)]


def load_settings(**overrides: object) -> Settings:
    """Read the settings, as `gradtrail.settings.load_settings` does; help is printed without loading what they need.

    Raises:
        UsageError: for a file that cannot be read, unknown keys and unusable values, naming file or variable.
    """
    from gradtrail import settings

    return settings.load_settings(**overrides)


def method_spec(**typed: Any) -> MethodSpec:
    """The method as it was typed, by the names of `MethodSpec.from_json`."""
    from gradtrail.attribution.methods.spec import MethodSpec

    return MethodSpec.from_json(typed)


def audit_options(
    *, horizon: str, target: Target, top_k: int, index: str, every_checkpoint: bool, **typed: Any
) -> AuditOptions:
    """An audit as it was typed: `typed` is the method's, and `horizon` a number or a question.

    Raises:
        UsageError: for a horizon that is neither.
    """
    from gradtrail.amounts import horizon_or_question
    from gradtrail.tasks.audit.options import AuditOptions

    number, question = horizon_or_question(horizon)
    options = AuditOptions(
        target=target, top_k=top_k, every_checkpoint=every_checkpoint, question=question, index=index
    )
    return options.with_method(method_spec(horizon=number, **typed))


def write_file(path: Path, content: bytes) -> None:
    """Write a file that somebody asked for, whole or not at all.

    Raises:
        UsageError: if it cannot be written, for example because the disk is full; what was there stays.
    """
    from gradtrail.storage.files.atomic import write_atomically

    try:
        write_atomically(path, content)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}.", "Check the disk, or choose another place."
        ) from error
