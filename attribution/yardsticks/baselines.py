"""Baselines a user already has, as scoring passes: random, nearest neighbours in the last hidden layer, BM25 on text.

Evaluation treats them like any method; a gradient method that does not beat them is reported as such (METHODS: other
yardsticks). Their scores only rank: they have no unit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import ModelAdapter, TrainingData
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.gradients.eval_mode import frozen_in_eval
from gradtrail.attribution.scoring.batches import ScoredBatch, ScoringPass
from gradtrail.errors import DataError, ModelError, UsageError
from gradtrail.nouns import Example

Similarity: TypeAlias = Literal["cosine", "dot"]
Words: TypeAlias = Callable[[str], list[str]]

_TEXT_ATTRIBUTE = "text"
_WORD = re.compile(r"\w+")


def random_pass(training: TrainingData, queries: int, *, seed: int = 0, batch_size: int = 1024) -> ScoringPass:
    """Scores drawn from a standard normal, the same again for a seed."""

    def batches() -> Iterator[ScoredBatch]:
        generator = np.random.default_rng(seed)
        for examples in _batches(training, batch_size):
            yield _rows(examples), generator.standard_normal((len(examples), queries)).T

    return ScoringPass(queries, batches)


def neighbour_pass(
    adapter: ModelAdapter,
    model: nn.Module,
    training: TrainingData,
    queries: Sequence[Example],
    *,
    similarity: Similarity = "cosine",
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> ScoringPass:
    """Similarity in the last hidden layer (`last_hidden`) between examples and queries.

    Each pass over the scores runs the model over the training data again; nothing is kept but the queries' states.

    Raises:
        UsageError: for an unknown similarity.
        ModelError: when the model has no layer with parameters that is called.
    """
    if similarity not in {"cosine", "dot"}:
        raise UsageError(f"There is no similarity {similarity!r}.", "Choose cosine or dot.")

    def states(examples: Sequence[Example]) -> NDArray[np.float64]:
        found = last_hidden(adapter, model, examples, device=device).double()
        if similarity == "cosine":
            found = nn.functional.normalize(found, dim=1, eps=torch.finfo(torch.float64).tiny)
        arrays: NDArray[np.float64] = found.numpy()
        return arrays

    asked = np.concatenate([states(queries[at : at + batch_size]) for at in range(0, len(queries), batch_size)])

    def batches() -> Iterator[ScoredBatch]:
        for examples in _batches(training, batch_size):
            yield _rows(examples), asked @ states(examples).T

    return ScoringPass(len(queries), batches)


def last_hidden(
    adapter: ModelAdapter, model: nn.Module, examples: Sequence[Example], *, device: str | torch.device = "cpu"
) -> Tensor:
    """What the layer with parameters that is called last gets as input: (examples, width) on the CPU.

    Positions are averaged where the adapter's `position_mask` says which are real; other dimensions are flattened.

    Raises:
        ModelError: when no layer with parameters is called.
    """
    batch = adapter.collate(examples).to(device)
    with frozen_in_eval(model), torch.no_grad(), _listening(model) as heard:
        adapter.outputs(model, batch)
    if not heard:
        raise ModelError(
            f"No layer of {type(model).__name__} with parameters of its own is called.",
            "Compare with another baseline: this one needs a last layer.",
        )
    state = heard[-1]
    mask = adapter.position_mask(batch)
    if mask is not None and state.shape[: mask.ndim] == mask.shape and state.ndim > mask.ndim:
        real = mask.bool().reshape(*mask.shape, *[1] * (state.ndim - mask.ndim))
        state = torch.where(real, state, torch.zeros_like(state)).sum(1) / real.sum(1).clamp_min(1)
    return state.flatten(1).cpu()


@contextmanager
def _listening(model: nn.Module) -> Iterator[list[Tensor]]:
    """The input of the layer that was called last, alone in a list."""
    heard: list[Tensor] = []

    def hear(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = args[0] if args else kwargs.get("input")
        if isinstance(value, Tensor):
            heard[:] = [value.detach().clone()]

    own = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    handles = [module.register_forward_pre_hook(hear, with_kwargs=True) for module in own]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def lexical_pass(
    adapter: ModelAdapter,
    training: TrainingData,
    queries: Sequence[Example],
    *,
    words: Words | None = None,
    batch_size: int = 1024,
) -> ScoringPass:
    """BM25 (Lucene's variant, k1 = 1.5, b = 0.75) between the texts of examples and queries; needs the extra `text`.

    The text of an example is its attribute `text`, else the text the adapter previews. By default its words are runs
    of letters and digits, in lower case.

    Raises:
        UsageError: when the extra is not installed.
        DataError: naming an example without text, or when no example holds a word.
    """
    try:
        import bm25s  # type: ignore[import-untyped]  # it comes without types
    except ImportError as cause:
        raise UsageError(
            "BM25 needs the package bm25s, which is not installed.", "Install it: pip install 'gradtrail[text]'."
        ) from cause
    split = words or _words
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    documents = [split(_text(adapter, example)) for part in _batches(training, batch_size) for example in part]
    if not any(documents):
        raise DataError(
            f"None of the {len(training)} training examples holds a word.",
            "Give texts with words, or split them otherwise with `words`.",
        )
    index.index(documents, show_progress=False)
    counts = np.zeros((len(queries), len(index.vocab_dict)))
    for place, query in enumerate(queries):
        for word in split(_text(adapter, query)):
            if word in index.vocab_dict:
                counts[place, index.vocab_dict[word]] += 1
    asked: NDArray[np.bool_] = counts.sum(0) > 0
    weights = _by_document(index.scores, asked)

    def batches() -> Iterator[ScoredBatch]:
        start = 0
        for examples in _batches(training, batch_size):
            yield _rows(examples), _lexical_scores(weights, counts, start, len(examples))
            start += len(examples)

    return ScoringPass(len(queries), batches)


_Entries: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""Of a sparse matrix, sorted by document: document, word and weight of each entry."""


def _by_document(scores: dict[str, Any], asked: NDArray[np.bool_]) -> _Entries:
    """The entries of words that any query asks for; bm25s keeps them word by word."""
    of_word = np.repeat(np.arange(len(scores["indptr"]) - 1), np.diff(scores["indptr"]))
    kept = np.flatnonzero(asked[of_word])
    order = kept[np.argsort(scores["indices"][kept], kind="stable")]
    return scores["indices"][order].astype(np.int64), of_word[order], scores["data"][order].astype(np.float64)


def _lexical_scores(entries: _Entries, counts: NDArray[np.float64], start: int, count: int) -> NDArray[np.float64]:
    low, high = np.searchsorted(entries[0], [start, start + count])
    documents, words, weights = (part[low:high] for part in entries)
    found = np.zeros((len(counts), count))
    for place, own in enumerate(counts):
        found[place] = np.bincount(documents - start, own[words] * weights, count)
    return found


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _text(adapter: ModelAdapter, example: Example) -> str:
    if _TEXT_ATTRIBUTE in example.attributes:
        return example.attributes[_TEXT_ATTRIBUTE]
    preview = adapter.preview(example)
    if preview.kind != "text":
        raise DataError(
            f"Example {example.example_id} has no text: its preview is of kind {preview.kind}.",
            f"Give it an attribute {_TEXT_ATTRIBUTE!r}, or let the adapter preview text.",
        )
    return preview.text


def _batches(training: TrainingData, size: int) -> Iterator[list[Example]]:
    for start in range(0, len(training), size):
        yield [training[place] for place in range(start, min(start + size, len(training)))]


def _rows(examples: Sequence[Example]) -> GradientBatch:
    """Rows that carry ids and attributes; a baseline has no vectors."""
    names = sorted({name for example in examples for name in example.attributes})
    return GradientBatch(
        example_ids=[example.example_id for example in examples],
        vectors=torch.zeros(len(examples), 0),
        losses=torch.zeros(len(examples), dtype=torch.float64),
        squared_norms=torch.ones(len(examples), 1, dtype=torch.float64),
        attributes={name: [example.attributes.get(name, "") for example in examples] for name in names},
    )
