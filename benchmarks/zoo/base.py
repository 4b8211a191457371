"""What a model of the bench is: an adapter, the user's own loss of one example, and how the weights were saved."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import ModelAdapter
from gradtrail.nouns import Example

OwnLoss = Callable[[nn.Module, Example], Tensor]
"""The loss of one example as a training loop computes it, without gradtrail."""

EXAMPLES = 64


@dataclass(frozen=True)
class Case:
    """One model: its name, its adapter as a user writes it, and the user's own loss, which shares no code with it.

    `save` writes the trained model's weights into a folder and returns the file; `float32` says that the user computes
    in float32 although the weights were saved in another type.
    """

    name: str
    adapter: type[ModelAdapter]
    own_loss: OwnLoss
    batch_size: int = 64
    save: Callable[[nn.Module, Path], Path] | None = None
    half_precision: bool = False

    @property
    def adapter_lines(self) -> int:
        """Lines of the adapter's class, without empty ones."""
        return sum(bool(line.strip()) for line in inspect.getsource(self.adapter).splitlines())


def texts(vocabulary: int = 1000, longest: int = 64) -> list[Example]:
    """Documents of random tokens, cut to one length as is usual; every eighth is shorter."""
    generator = torch.Generator().manual_seed(1)
    lengths = [longest - 9 if number % 8 == 1 else longest for number in range(EXAMPLES)]
    words = [torch.randint(3, vocabulary, (length,), generator=generator) for length in lengths]
    return [Example(f"text-{number}", one, None) for number, one in enumerate(words)]


def labelled_texts(classes: int = 3, longest: int = 64) -> list[Example]:
    """Texts as a tokeniser of transformers gives them, padded to one length, and a class."""
    examples = []
    for number, text in enumerate(texts(longest=longest)):
        ids = torch.cat([text.inputs, torch.ones(longest - len(text.inputs), dtype=torch.int64)])
        fields = {"input_ids": ids, "attention_mask": (ids != 1).long()}
        examples.append(Example(text.example_id, fields, number % classes))
    return examples


def translations(length: int = 48) -> list[Example]:
    """A text, and another that follows it: what a model of text to text reads, and what its decoder says."""
    generator = torch.Generator().manual_seed(1)
    examples = []
    for number in range(EXAMPLES):
        words, said = torch.randint(3, 1000, (2, length), generator=generator)
        before = torch.cat([torch.zeros(1, dtype=torch.int64), said[:-1]])
        examples.append(Example(f"pair-{number}", {"input_ids": words, "decoder_input_ids": before}, said))
    return examples


def images(size: int, classes: int = 10) -> list[Example]:
    """Random pictures (3, size, size), and a class."""
    pictures = torch.randn(EXAMPLES, 3, size, size, generator=torch.Generator().manual_seed(1))
    return [Example(f"image-{number}", one, number % classes) for number, one in enumerate(pictures)]


def table() -> list[Example]:
    """Rows of categories and numbers, and a class."""
    generator = torch.Generator().manual_seed(1)
    categories = torch.randint(0, 20, (16 * EXAMPLES, 6), generator=generator)
    numbers = torch.randn(16 * EXAMPLES, 10, generator=generator)
    pairs = zip(categories, numbers, strict=True)
    return [Example(f"row-{number}", pair, number % 3) for number, pair in enumerate(pairs)]
