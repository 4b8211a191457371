"""dattri's LoGra: projected gradients of linear layers, kept in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dattri.algorithm.logra import LoGraAttributor
from dattri.task import AttributionTask
from prepared import CannotDoError, Prepared
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from workloads import ImageCNN, Workload


class Named(Dataset[dict[str, Tensor]]):
    """Examples as dictionaries: of tuples dattri passes a single example, without its batch, to set the layers up."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self._inputs, self._targets = inputs, targets

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"inputs": self._inputs[number], "targets": self._targets[number]}


class Measured(nn.Module):
    """The model, called with all that a batch names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002 (dattri passes both)
        logits: Tensor = self.model(inputs)
        return logits


def prepare(workload: Workload, folder: Path) -> Prepared:
    if workload.model_type is ImageCNN:
        raise CannotDoError("LoGra in dattri has a rule for linear layers only, no convolution")
    model = Measured(workload.build())
    loader = DataLoader(Named(*workload.data()), batch_size=workload.batch_size, shuffle=False)

    def loss(measured: nn.Module, batch: dict[str, Tensor], device: Any) -> Tensor:  # noqa: ARG001 (the interface)
        # dattri multiplies every gradient by the batch size, so its loss is the mean.
        return workload.losses(measured(**batch), batch["targets"]).mean()

    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    # Its cache on disk asks for pinned memory, which needs an accelerator: here the gradients stay in memory.
    attributor = LoGraAttributor(
        task, hessian="Identity", device="cpu", proj_dim=256, offload="none", cache_dir=str(folder)
    )
    return Prepared(lambda: attributor.cache(loader), workload.examples, "linear layers; kept in memory, not written")
