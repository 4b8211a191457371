"""kronfluence: keeps no index, so what is timed is one pass that scores the training set against eight queries."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from prepared import Prepared
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset
from workloads import Workload

QUERIES = 8


def prepare(workload: Workload, folder: Path) -> Prepared:
    class WorkloadTask(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:  # noqa: ARG002 (the interface)
            return workload.losses(model(batch[0]), batch[1]).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    dataset = TensorDataset(*workload.data())
    task = WorkloadTask()
    model = prepare_model(workload.build(), task)

    def run() -> None:
        shutil.rmtree(folder / "kronfluence", ignore_errors=True)
        analyzer = Analyzer(
            "race",
            model,
            task,
            cpu=True,
            output_dir=str(folder / "kronfluence"),
            disable_tqdm=True,
            disable_model_save=True,
        )
        analyzer.fit_all_factors("identity", dataset, factor_args=FactorArguments(strategy="identity"))
        analyzer.compute_pairwise_scores(
            "scores",
            "identity",
            Subset(dataset, range(QUERIES)),
            dataset,
            per_device_query_batch_size=QUERIES,
            per_device_train_batch_size=workload.batch_size,
            score_args=ScoreArguments(),
        )

    return Prepared(run, workload.examples, f"linear layers and convolutions; scores of {QUERIES} queries, no index")
