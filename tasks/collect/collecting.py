"""Collecting outputs: what lies in the sources becomes payloads and rows of the ledger, each once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from gradtrail.errors import StoreError, said
from gradtrail.lineage.events.alerts import undelivered_alerts
from gradtrail.lineage.events.source_watermarks import newest_watermark, record_watermark
from gradtrail.lineage.read import queries
from gradtrail.lineage.read.clocks import clock_behind_seconds
from gradtrail.lineage.read.deliveries import recorded_payloads
from gradtrail.lineage.read.unjudged import refused_outputs
from gradtrail.nouns import Target, Watermark
from gradtrail.storage.models.registry import RegisteredVersion
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.storage.sources.intake import Intake
from gradtrail.storage.sources.opening import open_source
from gradtrail.storage.sources.spool import Held, Spool, open_spool
from gradtrail.tasks.core.extensions import load_extension
from gradtrail.tasks.core.measured_outputs import MEASURING
from gradtrail.tasks.core.workspace import Workspace

_RECORDED_AT_ONCE = 500


@dataclass(frozen=True)
class WaitingOutputs:
    """Taken outputs of one model version that the ledger does not have yet.

    The version was never `ingested`; or it was, and the run had recorded as many as it may. `ahead` of them say that
    they were made later than this machine's clock shows, the first `earliest`.
    """

    model_version_id: str
    count: int
    ingested: bool
    ahead: int = 0
    earliest: datetime | None = None

    @property
    def model(self) -> str:
        """The model's name."""
        return self.model_version_id.rpartition("/")[0]


@dataclass(frozen=True)
class Collection:
    """What a look into the sources brought.

    Attributes:
        new_output_ids: outputs that were recorded, in order.
        refused: records that were refused for the first time, each with the cause.
        waits: taken outputs that are not recorded yet, by model version.
        sampled_out: new records that the sampling did not choose.
        without_confidence: of the new records, those that lowest confidence was asked of and that have none.
        failed: sources that could not be read, each with the cause; the next run tries them again.
        clock_behind_seconds: how far this machine's clock lies before the newest event of the ledger, where it does.
    """

    new_output_ids: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    waits: tuple[WaitingOutputs, ...] = ()
    sampled_out: int = 0
    without_confidence: int = 0
    failed: tuple[tuple[str, str], ...] = ()
    clock_behind_seconds: float = 0.0

    @property
    def waiting(self) -> int:
        """How many taken outputs are not recorded yet."""
        return sum(each.count for each in self.waits)

    @property
    def anything(self) -> bool:
        """Whether the ledger has something new of it."""
        return bool(self.new_output_ids or self.refused or self.sampled_out)


def collect_outputs(
    workspace: Workspace, collect: Callable[[Workspace, SourceConfig], Collection] | None = None
) -> Collection:
    """Read every source: record what is new, quarantine what cannot be used. A source that fails stops no other.

    `collect` reads one source; by default `collect_source`, which tries once.
    """
    collect = collect or collect_source
    collected: list[Collection] = []
    for source in workspace.output_sources:
        try:
            collected.append(collect(workspace, source))
        except Exception as fault:
            # Whatever it is: the outputs of the other models do not wait for it. Prefect logs where it was raised.
            collected.append(Collection(failed=((source.name, said(fault)),)))
    return _together(collected)


def collect_source(workspace: Workspace, source: SourceConfig) -> Collection:
    """Read one source from its watermark on.

    Records go into the spool before the ledger has them, and the watermark moves after it has.

    Raises:
        GradtrailError: the source cannot be read; what was read before is recorded.
    """
    ledger, now = workspace.ledger(), datetime.now(UTC)
    if source.name == workspace.home_source.name:
        workspace.inbox.mkdir(parents=True, exist_ok=True)
    until = now + timedelta(minutes=source.clock_skew_minutes)
    with ledger.read() as connection:
        behind = clock_behind_seconds(connection, now)
        before = newest_watermark(connection, source.name) or Watermark(source.name, source.kind, None)
        ingested = [version.model_version_id for version in queries.model_versions(connection)]
    overlap = timedelta(hours=source.overlap_hours)
    since = before.reached - overlap if before.reached else None
    with open_spool(workspace.spool) as spool:
        spool.begin(before)
        recording = Recording(workspace, source, spool, ingested, until)
        recording.drain()
        reader = open_source(source, workspace.registry, lambda kind: load_extension(workspace, kind, "a source").value)
        intake = Intake(source, reader, spool, now, since, recording.left(), recording.known)
        try:
            for taken in intake.run():
                if taken - recording.count >= _RECORDED_AT_ONCE:
                    recording.drain()
        finally:
            recording.drain()
            reached = spool.watermark(source.name)
            if reached != before:
                record_watermark(ledger, reached)
            ahead = spool.ahead(until)
            waits = tuple(
                _waiting(model_version_id, count, ingested, ahead.get((origin, model_version_id)))
                for origin, model_version_id, count in spool.waiting()
                if origin == source.name
            )
        if reached.reached:
            spool.forget_before(source.name, reached.reached - overlap - timedelta(days=1))
    return Collection(
        tuple(recording.new_output_ids),
        tuple(recording.refused),
        waits,
        intake.sampled_out,
        intake.sample.without_confidence,
        clock_behind_seconds=behind,
    )


class Recording:
    """From the spool into the ledger, within what one run may record."""

    def __init__(
        self, workspace: Workspace, source: SourceConfig, spool: Spool, ingested: Sequence[str], until: datetime
    ) -> None:
        self._workspace, self._source, self._spool, self._until = workspace, source, spool, until
        self._ledger = workspace.ledger()
        self._ingested = ingested
        self._missing: set[str] = set()
        self.new_output_ids: list[str] = []
        self.refused: list[tuple[str, str]] = []

    @property
    def count(self) -> int:
        """Outputs recorded so far."""
        return len(self.new_output_ids)

    def left(self) -> int | None:
        """How many outputs the run may still record; None for no limit."""
        most = self._source.most_per_run
        return max(most - self.count, 0) if most else None

    def known(self, output_ids: Iterable[str]) -> dict[str, str]:
        """The payload digests of those outputs that the ledger has, by id."""
        named = list(output_ids)
        if not named:
            return {}
        with self._ledger.read() as connection:
            found = recorded_payloads(connection, named)
        self._missing.update(named)
        self._missing.difference_update(found)
        return found

    def drain(self) -> None:
        """Record what waits, as far as its time has come, its model version is ingested and the run has room.

        What was refused is recorded, too.
        """
        name = self._source.name
        while (left := self.left()) != 0 and self._ingested:
            limit = min(_RECORDED_AT_ONCE, left or _RECORDED_AT_ONCE)
            held = self._spool.ready(name, self._ingested, limit, self._until)
            if not held:
                break
            self._record(held)
        refusals = self._spool.refusals(name)
        for _, each in refusals:
            if self._ledger.record_quarantine(each.source, each.record_id, each.cause):
                self.refused.append((each.record_id, each.cause))
        if refusals:
            self._spool.reported([place for place, _ in refusals])

    def _record(self, held: list[Held]) -> None:
        # What this run was told before is not there needs no second question; what an earlier run left does.
        known = self.known({each.output.output_id for each in held} - self._missing)
        new = [each for each in held if each.output.output_id not in known]
        self._workspace.payloads().put_all(each.payload for each in new)
        self.new_output_ids += self._ledger.record_outputs([each.output for each in new])
        self._spool.release([each.output.output_id for each in held])
        self._missing.difference_update(each.output.output_id for each in held)


def require_sources(failed: Sequence[tuple[str, str]]) -> None:
    """Say, at the end of a run, what could not be read or answered.

    Raises:
        StoreError: something failed; the message names each.
    """
    if failed:
        named = " ".join(f"{name}: {cause}" for name, cause in failed)
        raise StoreError(
            f"{len(failed)} of the sources could not be read or answered. {named}",
            "What could be read is audited and kept; the next run tries the rest again.",
        )


def require_finished(failed: Sequence[tuple[str, str]]) -> None:
    """Say, at the end of a run, which outputs could not be read and which reports not be finished.

    Raises:
        StoreError: something failed; the message names each.
    """
    if failed:
        named = " ".join(f"{name}: {cause}" for name, cause in failed)
        raise StoreError(f"Not done: {named}", "All else is done and kept; the next run tries this again.")


@dataclass(frozen=True)
class WorkLeft:
    """What the ledger holds for a run to do.

    Attributes:
        model_version_ids: versions of the model that have outputs to examine or an audit to finish; oldest first.
        alerts_due: whether an outlet has to be told of findings.
        unpublished: whether the snapshot lacks what was recorded last.
        refused: recorded outputs of the version that earlier runs refused to measure, so that no audit covers them.
    """

    model_version_ids: tuple[str, ...]
    alerts_due: bool
    unpublished: bool
    refused: int = 0


def look_for_work(workspace: Workspace, version: RegisteredVersion, target: Target, retry_refused: bool) -> WorkLeft:
    """What is left to do, for this model version, for others of the model, and for what runs before recorded."""
    ledger, quarantine = workspace.ledger(), None if retry_refused else MEASURING[target]
    with ledger.read() as connection:
        return WorkLeft(
            tuple(queries.versions_to_audit(connection, version.name, target=target, quarantine=quarantine)),
            bool(undelivered_alerts(connection)),
            not ledger.is_published(connection),
            refused_outputs(connection, version.model_version_id, MEASURING[target], target),
        )


def count_pending(workspace: Workspace, model_version_id: str, target: Target, retry_refused: bool) -> int:
    """How many outputs of a model version wait for an audit."""
    return len(pending_outputs(workspace, model_version_id, target, retry_refused).output_ids)


@dataclass(frozen=True)
class PendingOutputs:
    """What waits for an audit, oldest first, as one object: of a list Prefect would keep a note of each element.

    `unfinished` are audits that an interrupted run recorded without getting to the end of their report.
    """

    output_ids: tuple[str, ...]
    unfinished: tuple[str, ...] = ()


def pending_outputs(
    workspace: Workspace, model_version_id: str, target: Target, retry_refused: bool = False
) -> PendingOutputs:
    """Outputs of a model version that no audit has covered yet; without `retry_refused` only those not quarantined."""
    with workspace.ledger().read() as connection:
        quarantine = () if retry_refused else queries.quarantined(connection, MEASURING[target])
        unmeasurable = {refused.record_id for refused in quarantine}
        pending = queries.pending_outputs(connection, model_version_id, target=target)
        unfinished = queries.unreported_audits(connection, model_version_id)
    output_ids = tuple(output.output_id for output in pending if output.output_id not in unmeasurable)
    return PendingOutputs(output_ids, tuple(unfinished))


def _waiting(
    model_version_id: str, count: int, ingested: Sequence[str], ahead: tuple[int, datetime] | None
) -> WaitingOutputs:
    early, earliest = ahead or (0, None)
    return WaitingOutputs(model_version_id, count, model_version_id in ingested, early, earliest)


def _by_version(waits: Sequence[WaitingOutputs]) -> tuple[WaitingOutputs, ...]:
    """What waits in several sources, each model version once."""
    found: dict[str, WaitingOutputs] = {}
    for each in waits:
        before = found.get(each.model_version_id)
        if before is not None:
            times = [moment for moment in (before.earliest, each.earliest) if moment is not None]
            count, ahead = each.count + before.count, each.ahead + before.ahead
            each = replace(each, count=count, ahead=ahead, earliest=min(times, default=None))  # noqa: PLW2901
        found[each.model_version_id] = each
    return tuple(found[name] for name in sorted(found))


def _together(collected: list[Collection]) -> Collection:
    return Collection(
        tuple(output_id for each in collected for output_id in each.new_output_ids),
        tuple(refused for each in collected for refused in each.refused),
        _by_version([wait for each in collected for wait in each.waits]),
        sum(each.sampled_out for each in collected),
        sum(each.without_confidence for each in collected),
        tuple(failed for each in collected for failed in each.failed),
        max((each.clock_behind_seconds for each in collected), default=0.0),
    )
