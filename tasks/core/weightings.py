"""Learned weightings by what a person calls them: an aspect, or the beginning of an id."""

from __future__ import annotations

from gradtrail.attribution.methods.spec import UNIFORM
from gradtrail.attribution.weighting.aspects import OBJECTIVE as ASPECT
from gradtrail.errors import NotFoundError, UsageError
from gradtrail.lineage.read import listings
from gradtrail.lineage.read.measuring_adapters import own_indexes
from gradtrail.nouns import Weighting
from gradtrail.tasks.core.ledger_nouns import recorded_model_version
from gradtrail.tasks.core.workspace import Workspace

NOT_LEARNED = (None, UNIFORM)


def found_weighting(workspace: Workspace, model_version_id: str, asked: str | None) -> Weighting:
    """The weighting that a person asked for; None, where no calibration has chosen one, is the uniform one.

    `aspect:ATTRIBUTE` is the latest that was learned for it on the serving checkpoint, as the version's adapter
    measures it.

    Raises:
        NotFoundError: when there is none; it says how to learn one.
        UsageError: when an id begins several.
    """
    if asked is None or asked == UNIFORM:
        return Weighting()
    with workspace.ledger().read() as connection:
        known = listings.weightings(connection)
        version = recorded_model_version(connection, model_version_id)
        own = {index.index_id for index in own_indexes(connection, version)}
    if asked.startswith(f"{ASPECT}:"):
        fitting = [each for each in known if each.objective == asked and own.issuperset(_indexes(each)[-1:] or [""])]
        if not fitting:
            attribute = asked.removeprefix(f"{ASPECT}:")
            raise NotFoundError(
                f"No weighting for the aspect {attribute!r} was learned on {model_version_id}.",
                f"Learn one: gradtrail calibrate {model_version_id} --aspect {attribute}.",
            )
        return fitting[-1]
    named = [each for each in known if each.weighting_id.startswith(asked)]
    if len(named) > 1:
        raise UsageError(f"The id of {len(named)} weightings begins with {asked}.", "Give more of it.")
    if not named:
        raise NotFoundError(
            f"There is no weighting whose id begins with {asked}.",
            "Look at gradtrail weightings, or choose auto, uniform or aspect:ATTRIBUTE.",
        )
    return named[0]


def _indexes(weighting: Weighting) -> list[str]:
    """The indexes that a weighting was learned on, the serving checkpoint's last."""
    return list(weighting.evidence.get("index_ids", ()))
