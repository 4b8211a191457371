"""traker: gradients by torch.func, one global projection of all parameters, written to a memory map."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch
from prepared import Prepared
from torch import Tensor, nn
from torch.func import functional_call
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput
from workloads import TinyGPT, Workload, token_losses

PROJECTED = 512


class TokenLoss(AbstractModelOutput):
    """The summed log-likelihood of a sequence, since traker's own text task is classification."""

    def __init__(self) -> None:
        super().__init__()

    @staticmethod
    def get_output(model: nn.Module, weights: dict, buffers: dict, tokens: Tensor, targets: Tensor) -> Tensor:
        logits = functional_call(model, (weights, buffers), tokens.unsqueeze(0))
        return -token_losses(logits, targets.unsqueeze(0)).sum()

    def get_out_to_loss_grad(self, model: nn.Module, weights: dict, buffers: dict, batch: list[Tensor]) -> Tensor:  # noqa: ARG002 (the interface)
        return torch.ones(len(batch[0]), 1)


def prepare(workload: Workload, folder: Path) -> Prepared:
    model = workload.build()
    inputs, targets = workload.data()
    task = TokenLoss() if workload.model_type is TinyGPT else "image_classification"
    # Its projection on a CPU draws the whole matrix again for every batch: one batch is all a race can wait for.
    batch_size = min(workload.batch_size, workload.examples)
    inputs, targets = inputs[:batch_size], targets[:batch_size]

    def run() -> None:
        shutil.rmtree(folder / "traker", ignore_errors=True)
        traker = TRAKer(
            model,
            task,
            train_set_size=batch_size,
            save_dir=str(folder / "traker"),
            device="cpu",
            proj_dim=PROJECTED,
            use_half_precision=False,
            logging_level=logging.ERROR,
        )
        traker.load_checkpoint(model.state_dict(), model_id=0)
        traker.featurize([inputs, targets], num_samples=batch_size)

    return Prepared(run, batch_size, f"all parameters, one projection to {PROJECTED} numbers")
