"""bergson: projected gradients of every linear layer, written to its memory-mapped index on disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from bergson import GradientCollector, GradientProcessor, IndexConfig, collect_gradients
from datasets import Dataset
from prepared import CannotDoError, Prepared
from torch import Tensor, nn
from workloads import ImageCNN, TinyGPT, Workload


class LanguageModel(nn.Module):
    """A model with the surface of one of Hugging Face's, which bergson reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        model.device = self.device

    def forward(self, tokens: Tensor) -> Any:
        return SimpleNamespace(logits=self.base_model(tokens))


def prepare(workload: Workload, folder: Path) -> Prepared:
    if workload.model_type is ImageCNN:
        raise CannotDoError("bergson's hooks refuse activations that are not (batch, length, width): no convolution")
    return (_sequences if workload.model_type is TinyGPT else _rows)(workload, folder)


def _sequences(workload: Workload, folder: Path) -> Prepared:
    """The way bergson itself builds an index."""
    tokens, _ = workload.data()
    model = workload.build()
    model.requires_grad_(False)
    # As bergson's own worker leaves a model: only the embedding in the graph, so that the gradient reaches every layer.
    model.token_embedding.requires_grad_(True)
    dataset = Dataset.from_dict({"input_ids": tokens.tolist(), "length": [tokens.shape[1]] * len(tokens)})
    language_model = LanguageModel(model)

    def run() -> None:
        config = _config(folder)
        collect_gradients(language_model, dataset, _processor(), config, batches=_batches(workload))
        shutil.rmtree(config.partial_run_path)

    return Prepared(run, workload.examples, "linear layers")


def _rows(workload: Workload, folder: Path) -> Prepared:
    """Its collector around a loop of our own, with each row as a sequence of one position."""
    inputs, targets = workload.data()
    model = workload.build()
    model.requires_grad_(False)
    # bergson reads the type of its gradients off a weight that requires one; the smallest costs least.
    model.first.bias.requires_grad_(True)
    model.device = torch.device("cpu")
    dataset = Dataset.from_dict({"input_ids": [[0]] * workload.examples, "length": [1] * workload.examples})

    def run() -> None:
        config = _config(folder)
        collector = GradientCollector(model=model, cfg=config, processor=_processor(), data=dataset)
        for numbers in _batches(workload):
            batch = inputs[numbers].unsqueeze(1)
            with collector.with_batch(None):
                losses = workload.losses(model(batch).squeeze(1), targets[numbers])
                losses.sum().backward()
            collector.process_batch(numbers, losses=losses)
        collector.teardown()
        shutil.rmtree(config.partial_run_path)

    return Prepared(run, workload.examples, "linear layers; its collector in a loop of ours")


def _config(folder: Path) -> IndexConfig:
    config = IndexConfig(run_path=str(folder / "index"), projection_dim=16, include_bias=True)
    config.partial_run_path.mkdir(parents=True, exist_ok=True)
    return config


def _processor() -> GradientProcessor:
    return GradientProcessor(projection_dim=16, include_bias=True)


def _batches(workload: Workload) -> list[list[int]]:
    numbers = list(range(workload.examples))
    return [numbers[start : start + workload.batch_size] for start in range(0, len(numbers), workload.batch_size)]
