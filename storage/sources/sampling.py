"""Which of the new records of a run are audited."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from gradtrail.digests import sha256_json
from gradtrail.nouns import Output
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.storage.sources.outputs import ParsedOutput

CONFIDENCE = "confidence"
_HASH_DIGITS = 13  # 52 bits, which a float holds exactly


@dataclass
class Sample:
    """Chooses among records that arrive one by one; one object a run and source.

    `first` and `stratified` count the records of the run in their order; a stratum is the label, or the prediction
    where there is no label. `random` depends on the output's id and the seed alone, so it is the same in every run.
    `lowest_confidence` is known when all records were seen; a record without a confidence counts as the most confident.

    Attributes:
        without_confidence: records that had no `confidence` where the lowest was asked for.
    """

    config: SourceConfig
    without_confidence: int = 0
    _counts: dict[str, int] = field(default_factory=dict)
    _lowest: list[tuple[float, float, str, ParsedOutput]] = field(default_factory=list)
    _candidates: set[str] = field(default_factory=set)

    @property
    def is_open(self) -> bool:
        """Whether the sample is only known when all records were seen."""
        return self.config.sampling == "lowest_confidence"

    def choose(self, arrived: Iterable[ParsedOutput]) -> tuple[list[ParsedOutput], list[Output]]:
        """Those of the records that are certainly in the sample, and those that certainly are not."""
        taken: list[ParsedOutput] = []
        left_out: list[Output] = []
        for each in arrived:
            if self.is_open:
                left_out += self._consider(each)
            elif self._is_chosen(each):
                taken.append(each)
            else:
                left_out.append(each.output)
        return taken, left_out

    def rest(self) -> list[ParsedOutput]:
        """The records that are in the sample now that all were seen, in order of time."""
        chosen = sorted((entry[3] for entry in self._lowest), key=lambda each: each.output.produced_at)
        self._lowest = []
        return chosen

    def _is_chosen(self, parsed: ParsedOutput) -> bool:
        config = self.config
        if config.sampling == "random":
            return _uniform(parsed.output.output_id, config.sample_seed) < config.sample_share
        if config.sampling == "all":
            return True
        stratum = _stratum(parsed) if config.sampling == "stratified" else ""
        self._counts[stratum] = self._counts.get(stratum, 0) + 1
        return self._counts[stratum] <= config.sample_size

    def _consider(self, parsed: ParsedOutput) -> list[Output]:
        output = parsed.output
        if output.output_id in self._candidates:
            return []
        confidence = parsed.record.get(CONFIDENCE)
        if isinstance(confidence, bool) or not isinstance(confidence, int | float):
            self.without_confidence += 1
            confidence = math.inf
        # The heap's smallest entry is the one to lose: the most confident, then the latest.
        entry = (-float(confidence), -output.produced_at.timestamp(), output.output_id, parsed)
        self._candidates.add(output.output_id)
        if len(self._lowest) < self.config.sample_size:
            heapq.heappush(self._lowest, entry)
            return []
        lost = heapq.heappushpop(self._lowest, entry)[3].output
        self._candidates.discard(lost.output_id)
        return [lost]


def _stratum(parsed: ParsedOutput) -> str:
    label = parsed.record.get("label")
    return sha256_json(parsed.record["prediction"] if label is None else label)


def _uniform(output_id: str, seed: int) -> float:
    """A number from 0 to 1 that is fixed for an output and a seed."""
    return int(sha256_json([seed, output_id])[:_HASH_DIGITS], 16) / 16.0**_HASH_DIGITS
