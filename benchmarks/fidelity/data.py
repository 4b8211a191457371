"""Data that ships in Python packages, split into training examples and three disjoint sets of queries."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fidelity.networks import VOCABULARY
from gradtrail.errors import DataError
from gradtrail.nouns import Example

PARTS = ("fit", "select", "report")
"""What each set of queries is for: to fit weights on, to choose methods by, and to report."""
SEED = 20261122
"""Of the draw. Nothing was set with these queries in view: an earlier draw, of seed 2412, was seen while k, strength,
dampings and methods were chosen."""
PACKAGES = ("click", "jinja2", "sklearn", "networkx", "requests", "yaml", "rich", "tqdm")
"""Whose source files the language model reads."""


@dataclass(frozen=True)
class Data:
    """Training examples, and queries in the order fit, select, report; `parts` are their positions."""

    training: tuple[Example, ...]
    queries: tuple[Example, ...]
    parts: dict[str, list[int]]


def load_data(task: str, training: int, queries: Sequence[int], length: int = 48) -> Data:
    """`training` examples and as many queries for each part as asked, drawn by a fixed seed.

    Raises:
        DataError: when the package holds fewer.
    """
    examples = _language(length) if task == "language" else _sklearn(task)
    count = training + sum(queries)
    if len(examples) < count:
        raise DataError(f"{task} has {len(examples)} examples, not {count}.", "Ask for fewer.")
    order = np.random.default_rng(SEED).permutation(len(examples))[:count].tolist()
    drawn = [examples[place] for place in order]
    bounds = np.cumsum([0, *queries]).tolist()
    parts = {name: list(range(bounds[place], bounds[place + 1])) for place, name in enumerate(PARTS)}
    return Data(tuple(drawn[:training]), tuple(drawn[training:]), parts)


def _sklearn(task: str) -> list[Example]:
    from sklearn import datasets

    loaded = {"diabetes": datasets.load_diabetes, "cancer": datasets.load_breast_cancer, "digits": datasets.load_digits}
    found = loaded[task]()
    if task == "digits":
        inputs = torch.from_numpy((found.images / 16).astype(np.float32))[:, None]
    else:
        inputs = torch.from_numpy(_standardised(found.data))
    targets = _standardised(found.target) if task == "diabetes" else found.target
    return [
        Example(f"{task}-{place:04d}", one, torch.tensor([float(target)]) if task == "diabetes" else int(target))
        for place, (one, target) in enumerate(zip(inputs, targets, strict=True))
    ]


def _standardised(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return ((values - values.mean(0)) / values.std(0)).astype(np.float32)


def _language(length: int) -> list[Example]:
    """Windows of source files, one after the other, so that queries have neighbours among the training examples."""
    found = []
    for package in PACKAGES:
        for path in _files(package)[:3]:
            tokens = tokenise(path.read_text(encoding="utf-8", errors="replace"))
            for start in range(0, min(len(tokens), 30 * length) - length, length):
                name = f"{package}/{path.name}:{start:05d}"
                window = tokens[start : start + length]
                found.append(Example(name, window, None, {"source": package}))
    return found


def _files(package: str) -> list[Path]:
    """The three largest source files of a package's own folder, by name."""
    specification = importlib.util.find_spec(package)
    if specification is None or not specification.submodule_search_locations:
        raise DataError(f"The language task reads source files of {package}.", "Install what requirements.lock names.")
    folder = Path(specification.submodule_search_locations[0])
    largest = sorted(folder.glob("*.py"), key=lambda path: (-path.stat().st_size, path.name))[:3]
    return sorted(largest)


def tokenise(text: str) -> Tensor:
    """Characters as token ids: printable ASCII from 2, the line break 1, anything else 0."""
    codes = [1 if character == "\n" else ord(character) - 30 for character in text]
    return torch.tensor([code if 0 < code < VOCABULARY else 0 for code in codes], dtype=torch.int64)


def text_of(tokens: Sequence[int]) -> str:
    """The characters of token ids, as `tokenise` read them."""
    return "".join("\n" if code == 1 else chr(code + 30) if code > 1 else "?" for code in tokens)
