"""Reading a source into the spool: each record understood, held against what is known, sampled, and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from gradtrail.errors import DataError
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.storage.sources.outputs import ParsedOutput, Refused, parse_record
from gradtrail.storage.sources.rows import Arrival, FileGone, FileMark, Settled, Source
from gradtrail.storage.sources.sampling import Sample
from gradtrail.storage.sources.spool import Decisions, Spool, refusal_key

_RECORDS_AT_ONCE = 200
_BYTES_AT_ONCE = 32 * 1024 * 1024

RecordedPayloads = Callable[[Sequence[str]], Mapping[str, str]]
Understood = tuple[Arrival, ParsedOutput | Refused]
FileNote = FileMark | FileGone


@dataclass
class Intake:
    """One run over one source.

    Attributes:
        now: the time of the run; no watermark goes beyond it.
        since: from when on the source is read; None reads all.
        most: the run ends once it took that many outputs; None for no limit.
        recorded: the payload digests of those outputs that the ledger has, by id.
        sample: the sampling of the run.
        taken: outputs taken so far.
        sampled_out: records left out so far.
    """

    config: SourceConfig
    source: Source
    spool: Spool
    now: datetime
    since: datetime | None
    most: int | None
    recorded: RecordedPayloads
    sample: Sample = field(init=False)
    taken: int = 0
    sampled_out: int = 0
    _reached: datetime | None = None
    _files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sample = Sample(self.config)

    def run(self) -> Iterator[int]:
        """Read until the source or the run is at its end; yields how many outputs were taken, after each step kept.

        Raises:
            GradtrailError: the source cannot be read; what was kept stays kept.
        """
        marks: list[FileNote] = []
        if self._is_full():
            return
        for batch in self._batches():
            decisions, settled = self._decide([each for each in batch if not isinstance(each, FileNote)])
            marks += [each for each in batch if isinstance(each, FileNote)]
            if not self.sample.is_open:
                decisions.marks, marks, decisions.reached = marks, [], self._reached
            self._keep(decisions, settled)
            yield self.taken
            if self._is_full():
                return
        self._keep(Decisions(taken=self.sample.rest(), marks=marks, reached=self._reached), [])
        yield self.taken

    def understand(self, arrival: Arrival) -> ParsedOutput | Refused:
        """One record as an output, or why it cannot be one."""
        try:
            if arrival.fault is not None:
                raise arrival.fault
            parsed = parse_record(arrival.record or {}, place=arrival.place, default_source=self.config.name)
        except DataError as fault:
            return Refused(arrival.origin, arrival.name, str(fault))
        return parsed

    def _is_full(self) -> bool:
        return self.most is not None and self.taken >= self.most

    def _batches(self) -> Iterator[list[Understood | FileNote]]:
        batch: list[Understood | FileNote] = []
        byte_count = 0
        for each in self.source.arrivals(self.since, self.spool.marks(self.config.name)):
            if isinstance(each, FileNote):
                batch.append(each)
            else:
                understood = self.understand(each)
                byte_count += len(understood.payload) if isinstance(understood, ParsedOutput) else 0
                batch.append((each, understood))
            if len(batch) >= _RECORDS_AT_ONCE or byte_count >= _BYTES_AT_ONCE:
                yield batch
                batch, byte_count = [], 0
        if batch:
            yield batch

    def _decide(self, batch: Sequence[Understood]) -> tuple[Decisions, list[Settled]]:
        """What is new in a batch, decided, and what became of the rest earlier."""
        ids = [found.output.output_id for _, found in batch if isinstance(found, ParsedOutput)]
        known = {**self.spool.held_payloads(ids), **self.recorded(ids)}
        decided = self.spool.decided(self.config.name, ids)
        refused: list[tuple[str, Refused]] = []
        settled: list[Settled] = []
        new: dict[str, ParsedOutput] = {}
        files: dict[str, str] = {}
        for arrival, found in batch:
            if isinstance(found, Refused):
                refused.append((refusal_key(found), found))
                continue
            output = found.output
            moment = min(output.produced_at, self.now)
            self._reached = moment if self._reached is None else max(self._reached, moment)
            if self.config.kind == "inbox":
                files[output.output_id] = arrival.origin
            if output.output_id in decided:
                settled.append(Settled(arrival.name, *decided[output.output_id]))
            elif output.output_id not in known:
                known[output.output_id] = output.payload_sha256
                new[output.output_id] = found
            elif known[output.output_id] != output.payload_sha256:
                refused.append(_conflict(arrival, output.output_id))
            elif output.output_id not in new:
                settled.append(Settled(arrival.name, "waiting"))
        taken, sampled_out = self.sample.choose(new.values())
        # Of a sample that is open, what an earlier batch brought may be left out only now.
        self._files |= {output_id: file for output_id, file in files.items() if output_id in new}
        left_out = {output_id: file for output_id, file in files.items() if output_id in decided}
        left_out |= {each.output_id: self._files.get(each.output_id, "") for each in sampled_out}
        for output_id in [each.output_id for each in sampled_out] + [each.output.output_id for each in taken]:
            self._files.pop(output_id, None)
        return Decisions(taken, sampled_out, refused, files=left_out), settled

    def _keep(self, decisions: Decisions, settled: list[Settled]) -> None:
        self.spool.keep(self.config.name, decisions)
        self.taken += len(decisions.taken)
        self.sampled_out += len(decisions.sampled_out)
        settled += [Settled(each.output.record_id, "waiting") for each in decisions.taken]
        settled += [Settled(each.record_id, "sampled_out") for each in decisions.sampled_out]
        settled += [Settled(each.record_id, "refused", each.cause) for _, each in decisions.refused]
        self.source.settle(settled)


def _conflict(arrival: Arrival, output_id: str) -> tuple[str, Refused]:
    cause = DataError(
        f"{arrival.place}: output {output_id} was delivered before with other content.",
        "Give each output a record_id of its own.",
    )
    refused = Refused(arrival.origin, arrival.name, str(cause))
    return refusal_key(refused), refused
