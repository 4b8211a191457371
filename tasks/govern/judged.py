"""What a gate was given and what of it was judged: an audit that covers nothing has passed nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gradtrail.errors import UnjudgedError, UsageError
from gradtrail.lineage.read.unjudged import refused_last
from gradtrail.nouns import Target
from gradtrail.reports.formats import plural
from gradtrail.tasks.core.measured_outputs import MEASURING
from gradtrail.tasks.core.workspace import Workspace

AT_READING = "refused when they were read"
AT_MEASURING = "refused when they were measured"
LEFT_OUT = "refused when they were measured, or without the label that was asked for"
WAITING = "waiting for a later run"


@dataclass(frozen=True)
class Given:
    """The outputs a run was given: those that audits cover (`judged`), and by cause those that none does.

    What sampling left out was left out on purpose: it is no failure, unless nothing is left to judge.
    """

    judged: int = 0
    unjudged: Mapping[str, int] = field(default_factory=dict)
    sampled_out: int = 0

    @property
    def left(self) -> int:
        """How many could not be judged."""
        return sum(self.unjudged.values())

    @property
    def is_new(self) -> bool:
        """Whether a run was given anything but what waits."""
        return bool(self.judged or self.sampled_out or self.left - self.unjudged.get(WAITING, 0))

    def in_words(self) -> str:
        """How many could not be judged and why, as a sentence; empty where all were."""
        causes = [f"{count:,} {cause}" for cause, count in self.unjudged.items() if count]
        said = []
        if causes:
            total = plural(self.left + self.judged, "output")
            said.append(f"{self.left:,} of {total} could not be judged: {'; '.join(causes)}.")
        if self.sampled_out:
            said.append(f"{plural(self.sampled_out, 'output was', 'outputs were')} left out by sampling.")
        return " ".join(said)


def given_last(workspace: Workspace, model_version_id: str, target: Target, judged: int, given: Given) -> Given:
    """What a run that found nothing new is judged by: what the run before it was given.

    Otherwise a second try would pass, for what was refused is not new any more.

    Args:
        workspace: where the ledger is.
        model_version_id: the version that was asked for.
        target: what was measured of the outputs.
        judged: outputs that the last audits cover.
        given: what the run found; what waits still does.
    """
    with workspace.ledger().read() as connection:
        last = refused_last(connection, model_version_id, MEASURING[target])
    unjudged = {AT_READING: last.at_reading, AT_MEASURING: last.at_measuring, **given.unjudged}
    return Given(0 if last.after_the_audits else judged, {cause: count for cause, count in unjudged.items() if count})


def require_share(most_unjudged: float) -> None:
    """Take a share from 0 to 1 only.

    Raises:
        UsageError: it is another number.
    """
    if not 0 <= most_unjudged <= 1:
        raise UsageError(
            f"{most_unjudged:g} is no share of outputs that may be left unjudged.", "Give a number from 0 to 1."
        )


def unjudged_fault(given: Given, most_unjudged: float = 0.0, least_outputs: int = 0) -> UnjudgedError | None:
    """Why a gate cannot pass for want of judging; None where enough was judged.

    However much may be left out, a gate that was given something and judged nothing does not pass.

    Args:
        given: what there was, and what of it was judged.
        most_unjudged: share of the outputs that may be left unjudged, 0 to 1.
        least_outputs: how many outputs have to be judged at least.
    """
    require_share(most_unjudged)
    total = given.judged + given.left
    if (given.left and given.left > most_unjudged * total) or (not given.judged and (given.left or given.sampled_out)):
        return UnjudgedError(
            f"{given.in_words()} A gate passes only what was judged; {most_unjudged:.0%} may be left out.",
            "Read the causes (`gradtrail sources`, and the table quarantine), mend them and audit again, or allow a "
            "share with --most-unjudged.",
        )
    if given.judged < least_outputs:
        besides = f" {words}" if (words := given.in_words()) else ""
        return UnjudgedError(
            f"{plural(given.judged, 'output was', 'outputs were')} judged, where at least {least_outputs:,} were "
            f"expected.{besides}",
            "See whether the outputs reach their source, or expect fewer with --least-outputs.",
        )
    return None
