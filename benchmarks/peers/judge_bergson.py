"""bergson on the language model: projected gradients of linear layers, damped inverse of their second moment."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from bergson import GradientProcessor, IndexConfig, collect_gradients
from bergson.data import load_gradients
from bergson.hessians.inversion import invert_psd_matrix
from bergson.process_grads import normalize_flat_grad, precondition_flat_grads
from datasets import Dataset
from judged import Given, judge
from torch import Tensor, nn

SIDE = 32
BATCH = 32


class LanguageModel(nn.Module):
    """The surface of one of Hugging Face's models, which bergson reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        model.device = self.device

    def forward(self, tokens: Tensor) -> Any:
        return SimpleNamespace(logits=self.base_model(tokens))


def scored(given: Given, folder: Path) -> None:
    with given.attempt("index"):
        train, sizes = _gradients(given, given.train[0], folder / "train")
        queries, _ = _gradients(given, given.queries[0], folder / "queries")
        given.add("grad_dot", queries @ train.T)
        given.add(
            "grad_cos",
            _units(queries) @ _units(train).T,
        )
        moments, start = {}, 0
        for name, size in sizes.items():
            part = train[:, start : start + size]
            moments[name] = part.T @ part / len(train)
            start += size
        for damping in given.dampings:
            with given.attempt(f"autocorrelation {damping}"):
                inverses = {
                    name: invert_psd_matrix(moment, damping_factor=damping, inversion="absolute_damped_inverse")
                    for name, moment in moments.items()
                }
                solved = precondition_flat_grads(queries.clone(), inverses, list(sizes))
                given.add("autocorrelation", solved @ train.T, damping)
                given.add("autocorrelation_cos", _units(solved) @ _units(train).T, damping)


def _gradients(given: Given, tokens: Tensor, folder: Path) -> tuple[Tensor, dict[str, int]]:
    model = given.model()
    model.requires_grad_(False)
    # As bergson's own worker leaves a model: only the embedding in the graph, so that the gradient reaches every layer.
    model.get_submodule("gpt.transformer.wte").weight.requires_grad_(True)
    data = Dataset.from_dict({"input_ids": tokens.tolist(), "length": [tokens.shape[1]] * len(tokens)})
    config = IndexConfig(run_path=str(folder), projection_dim=SIDE, include_bias=True, loss_reduction="sum")
    config.partial_run_path.mkdir(parents=True, exist_ok=True)
    processor = GradientProcessor(projection_dim=SIDE, include_bias=True)
    batches = [list(range(start, min(start + BATCH, len(tokens)))) for start in range(0, len(tokens), BATCH)]
    collect_gradients(LanguageModel(model), data, processor, config, batches=batches)
    found = load_gradients(config.partial_run_path)
    sizes = json.loads((config.partial_run_path / "info.json").read_text())["grad_sizes"]
    return torch.from_numpy(found.astype("float32").copy()), sizes


def _units(vectors: Tensor) -> Tensor:
    return torch.stack([normalize_flat_grad(row.clone(), torch.device("cpu")) for row in vectors])


judge(scored)
