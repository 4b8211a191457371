"""kronfluence: EK-FAC with the true Fisher, at every damping and at its own heuristic one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from judged import Given, judge
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from torch.utils.data import TensorDataset

BATCH = 64


def scored(given: Given, folder: Path) -> None:
    class Judged(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            outputs = model(batch[0])
            targets = _drawn(given.task, outputs, batch[1]) if sample else batch[1]
            return given.losses(outputs, targets).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    torch.manual_seed(0)
    task, train, queries = Judged(), TensorDataset(*given.train), TensorDataset(*given.queries)
    analyzer = Analyzer(
        "judged", prepare_model(given.model(), task), task, cpu=True, output_dir=str(folder), disable_tqdm=True,
        disable_model_save=True,
    )  # fmt: skip
    for strategy in ("ekfac", "kfac"):
        with given.attempt(strategy):
            analyzer.fit_all_factors(
                strategy, train, factor_args=FactorArguments(strategy=strategy), per_device_batch_size=BATCH
            )
        for damping in (*given.dampings, None):
            name = f"{strategy} {damping}"
            with given.attempt(name):
                analyzer.compute_pairwise_scores(
                    name.replace(" ", "-"),
                    strategy,
                    queries,
                    train,
                    score_args=ScoreArguments(damping_factor=damping),
                    per_device_query_batch_size=BATCH,
                    per_device_train_batch_size=BATCH,
                )
                found = analyzer.load_pairwise_scores(name.replace(" ", "-"))["all_modules"]
                given.add(strategy, found, damping, heuristic=damping is None)


def _drawn(task: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets drawn from the model itself."""
    if task == "diabetes":
        return (outputs + torch.randn_like(outputs)).detach()
    if task == "language":
        drawn = targets.clone()
        probabilities = outputs[:, :-1].detach().softmax(2).flatten(0, 1)
        drawn[:, 1:] = torch.multinomial(probabilities, 1).reshape(len(drawn), -1)
        return drawn
    return torch.multinomial(outputs.detach().softmax(1), 1).squeeze(1)


judge(scored)
