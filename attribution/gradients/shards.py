"""A part of the examples for one of several workers: together they give the rows of the whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from gradtrail.attribution.adapters.base import TrainingData
from gradtrail.errors import UsageError
from gradtrail.nouns import Example


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `count`, from 1: every `count`-th example, so that shards of sorted data take equally long."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        """Refuse a shard that does not exist.

        Raises:
            UsageError: when number is not between 1 and count.
        """
        if not 1 <= self.number <= self.count:
            raise UsageError(f"There is no shard {self.number}/{self.count}.", "Choose one from 1/n to n/n.")

    @classmethod
    def of_text(cls, text: str) -> Shard:
        """Read `2/3`.

        Raises:
            UsageError: for anything that is not two numbers, or a shard that does not exist.
        """
        number, slash, count = text.partition("/")
        if not (slash and number.isascii() and number.isdigit() and count.isascii() and count.isdigit()):
            raise UsageError(f"{text!r} is not a shard.", "Write for example 2/3, the second of three.")
        return cls(int(number), int(count))

    def part(self, number: int, count: int) -> Shard:
        """Part `number` of `count` of this shard, which is a shard of the whole."""
        return Shard(self.number + self.count * (number - 1), self.count * count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def holds(self, position: int) -> bool:
        """Whether the example at this position, counted from 0, belongs to the shard."""
        return position % self.count == self.number - 1

    def examples(self, examples: Iterable[Example] | TrainingData) -> Iterator[Example]:
        """The shard's examples in order; those of a map-style data set that belong to others are not read."""
        if isinstance(examples, Iterable):
            return islice(examples, self.number - 1, None, self.count)
        return (examples[position] for position in range(self.number - 1, len(examples), self.count))
