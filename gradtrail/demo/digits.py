"""The demo's model and data: a small CNN on scikit-learn's handwritten digits.

The images are real (UCI "Optical Recognition of Handwritten Digits", 1,797 scans of 8 × 8 pixels). The three source
names and their licences are made up for the demonstration, and so are a few wrong labels planted in one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters import ClassificationAdapter
from gradtrail.nouns import Example

TRAINING_COUNT = 1200
CLASS_COUNT = 10
LICENCES: Mapping[str, str] = {
    "postal-forms": "CC-BY-4.0",
    "school-worksheets": "CC-BY-NC-4.0",
    "web-crawl": "unknown",
}
MISLABELLED_SOURCE = "web-crawl"
MISLABELLED_SHARE = 0.06


@dataclass(frozen=True)
class DigitsData:
    """Training examples, held-out examples with their true labels, and which training labels were made wrong."""

    training: tuple[Example, ...]
    held_out: tuple[Example, ...]
    mislabelled: frozenset[str]


@cache
def load_digits_data() -> DigitsData:
    """Split the digits into training and held-out examples, assign sources, plant the wrong labels; deterministic."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, None]
    labels = digits.target.astype(int)
    generator = np.random.default_rng(20251121)
    order = generator.permutation(len(labels))
    sources = list(LICENCES)
    source_of = generator.choice(len(sources), size=TRAINING_COUNT, p=[0.45, 0.25, 0.30])
    candidates = np.flatnonzero(source_of == sources.index(MISLABELLED_SOURCE))
    wrong = set(generator.choice(candidates, size=round(MISLABELLED_SHARE * len(candidates)), replace=False).tolist())
    shifts = generator.integers(1, CLASS_COUNT, size=TRAINING_COUNT)

    training, mislabelled = [], set()
    for position, row in enumerate(order[:TRAINING_COUNT]):
        label = int(labels[row])
        source = sources[source_of[position]]
        if position in wrong:
            label = (label + int(shifts[position])) % CLASS_COUNT
            mislabelled.add(f"scan-{row:04d}")
        training.append(_example(int(row), images[row], label, source))
    held_out = [_example(int(row), images[row], int(labels[row]), "") for row in order[TRAINING_COUNT:]]
    return DigitsData(tuple(training), tuple(held_out), frozenset(mislabelled))


def _example(row: int, image: np.ndarray[Any, Any], label: int, source: str) -> Example:
    attributes = {"label": str(label)}
    if source:
        attributes |= {"source": source, "licence": LICENCES[source]}
    return Example(f"scan-{row:04d}", torch.from_numpy(image.copy()), label, attributes)


class DigitsAdapter(ClassificationAdapter):
    """How gradtrail meets the demo's model: an architecture and a training set; the base class does the rest."""

    def build_model(self) -> nn.Module:
        """Two convolutions and two linear layers: 12,594 parameters."""
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 56),
            nn.ReLU(),
            nn.Linear(56, CLASS_COUNT),
        )

    def training_data(self) -> tuple[Example, ...]:
        """The 1,200 training examples, the planted wrong labels included."""
        return load_digits_data().training


@dataclass(frozen=True)
class TrainingStep:
    """Weights after `step` updates, at `learning_rate`."""

    step: int
    learning_rate: float
    state_dict: dict[str, Tensor]


def train(seed: int = 0, epochs: int = 12) -> tuple[nn.Module, list[TrainingStep]]:
    """Train the CNN with Adam and keep a checkpoint after a third, two thirds and all of the epochs."""
    torch.manual_seed(seed)
    adapter = DigitsAdapter()
    model = adapter.build_model()
    data = adapter.training_data()
    images = torch.stack([example.inputs for example in data])
    labels = torch.tensor([example.target for example in data])
    learning_rate, batch_size = 2e-3, 64
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    kept, step = [], 0
    for epoch in range(1, epochs + 1):
        for rows in torch.split(torch.randperm(len(data), generator=generator), batch_size):
            optimiser.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(images[rows]), labels[rows]))
            optimiser.step()
            step += 1
        if epoch % (epochs // 3) == 0:
            weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            kept.append(TrainingStep(step, learning_rate, weights))
    return model.eval(), kept
