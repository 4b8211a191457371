"""Models of torch alone: recurrent networks, and a table with embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import gradtrail
from gradtrail.nouns import Example
from zoo.base import EXAMPLES, Case, table


class Recurrent(nn.Module):
    """Class logits of token ids (batch, positions), from the last state of an LSTM or a GRU."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 64)
        self.recurrent = kind(64, 128, batch_first=True)
        self.head = nn.Linear(128, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.recurrent(self.embedding(tokens))
        logits: Tensor = self.head(states[:, -1])
        return logits


class Table(nn.Module):
    """Class logits of categories (batch, 6) and numbers (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(20, 8) for _ in range(6)])
        self.norm = nn.BatchNorm1d(10)
        self.layers = nn.Sequential(nn.Linear(58, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3))

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        embedded = [layer(column) for layer, column in zip(self.embeddings, categories.T, strict=True)]
        logits: Tensor = self.layers(torch.cat([*embedded, self.norm(numbers)], dim=1))
        return logits


class Lstm(gradtrail.ClassificationAdapter):
    input_dtype = torch.int64

    def build_model(self):
        return Recurrent(nn.LSTM)

    def training_data(self):
        return sentences()


class Gru(gradtrail.ClassificationAdapter):
    input_dtype = torch.int64

    def build_model(self):
        return Recurrent(nn.GRU)

    def training_data(self):
        return sentences()


class Tabular(gradtrail.ClassificationAdapter):
    def build_model(self):
        return Table()

    def training_data(self):
        return table()


def sentences() -> list[Example]:
    """Texts of one length, and a class."""
    words = torch.randint(0, 1000, (4 * EXAMPLES, 32), generator=torch.Generator().manual_seed(1))
    return [Example(f"text-{number}", one, number % 3) for number, one in enumerate(words)]


def class_of_words(model: nn.Module, example: Example) -> Tensor:
    """Cross entropy of one text's class."""
    return functional.cross_entropy(model(example.inputs.unsqueeze(0)), torch.tensor([example.target]))


def class_of_row(model: nn.Module, example: Example) -> Tensor:
    """Cross entropy of one row's class."""
    categories, numbers = (part.unsqueeze(0) for part in example.inputs)
    return functional.cross_entropy(model(categories, numbers), torch.tensor([example.target]))


CASES = [
    Case("LSTM", Lstm, class_of_words, batch_size=128),
    Case("GRU", Gru, class_of_words, batch_size=128),
    Case("table with embeddings", Tabular, class_of_row, batch_size=256),
]
