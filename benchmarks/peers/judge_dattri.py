"""dattri: influence functions with the Hessian (explicit, or by conjugate gradients), DataInf, LoGra, TRAK."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from dattri.algorithm.influence_function import IFAttributorCG, IFAttributorDataInf, IFAttributorExplicit
from dattri.algorithm.logra import LoGraAttributor
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from judged import Given, judge
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset, TensorDataset

EXPLICIT = ("diabetes", "cancer")
"""Tasks whose Hessian is a matrix of at most some thousand rows."""
CLASSES = ("cancer", "digits")
QUERIES_TOGETHER = 8
MIDDLE = (7, 6, 8, 5, 9)
"""Places of the dampings that are tried by conjugate gradients, in this order."""


class Named(Dataset[dict[str, Tensor]]):
    """Examples as dictionaries, for LoGra calls the model with all that a batch names."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self._inputs, self._targets = inputs, targets

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"inputs": self._inputs[number], "targets": self._targets[number]}


class Called(nn.Module):
    """The model under such a call, which has to answer with its loss: the mean, for dattri multiplies by the batch."""

    def __init__(self, given: Given) -> None:
        super().__init__()
        self.model = given.model()
        self._given = given

    def forward(self, inputs: Tensor, targets: Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=self._given.losses(self.model(inputs), targets).mean())


def scored(given: Given, folder: Path) -> None:  # noqa: ARG001 (the interface)
    train, queries = (
        DataLoader(TensorDataset(*pair), batch_size=len(pair[0]), shuffle=False)
        for pair in (given.train, given.queries)
    )
    model = given.model()

    def loss(parameters: Any, pair: Any) -> Tensor:
        inputs, targets = pair
        return given.losses(functional_call(model, parameters, (inputs,)), targets).mean()

    task = AttributionTask(loss_func=loss, model=model, checkpoints=given.weights)
    # The Hessian has negative eigenvalues, far above the smallest dampings: only the upper ones are tried.
    for damping in given.dampings[len(given.dampings) // 3 :]:
        if given.task in EXPLICIT:
            for name, weights in (("if_explicit", given.weights), ("if_explicit, every checkpoint", given.checkpoints)):
                with given.attempt(f"{name} {damping}"):
                    several = AttributionTask(loss_func=loss, model=model, checkpoints=weights)
                    exact = IFAttributorExplicit(several, regularization=damping)
                    exact.cache(train)
                    given.add(name, exact.attribute(train, queries).T, damping)
    if given.task == "language":
        given.unavailable["if_cg"] = "not tried: products with the Hessian for every query take longer than the bench"
        given.unavailable["datainf"] = "not tried: it takes longer than the bench"
    for damping in given.dampings if given.task != "language" else []:
        with given.attempt(f"datainf {damping}"):
            mean = IFAttributorDataInf(task, regularization=damping)
            mean.cache(train)
            given.add("datainf", mean.attribute(train, queries).T, damping)
    _logra(given)
    _trak(given, model)
    if given.task == "digits":
        _products(given, task)


def _products(given: Given, task: AttributionTask) -> None:
    """The inverse Hessian by conjugate gradients, a few queries at a time: for all together it takes gigabytes.

    Last of all and damping by damping, for it takes longest: what is finished when it is stopped counts.
    """
    train = DataLoader(TensorDataset(*given.train), batch_size=len(given.train[0]))
    queries = DataLoader(TensorDataset(*given.queries), batch_size=QUERIES_TOGETHER)
    for damping in (given.dampings[place] for place in MIDDLE if place < len(given.dampings)):
        with given.attempt(f"if_cg {damping}"):
            solved = IFAttributorCG(task, regularization=damping, max_iter=15)
            solved.cache(train)
            given.add("if_cg", solved.attribute(train, queries).T, damping)


def _logra(given: Given) -> None:
    if given.task == "digits":
        given.unavailable["logra"] = "it has a rule for linear layers only"
        return
    # It takes the last batch for a full one: 320 rows of scores for 280 examples in batches of 64.
    train, queries = (
        DataLoader(Named(*pair), batch_size=_dividing(len(pair[0])), shuffle=False)
        for pair in (given.train, given.queries)
    )
    model = Called(given)

    def loss(called: nn.Module, batch: dict[str, Tensor], device: Any) -> Tensor:  # noqa: ARG001 (the interface)
        mean: Tensor = called(**batch).loss
        return mean

    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    for damping in given.dampings:
        with given.attempt(f"logra {damping}"):
            projected = LoGraAttributor(task, hessian="eFIM", damping=damping, proj_dim=1024, offload="none")
            projected.cache(train)
            found = projected.attribute(train_dataloader=train, test_dataloader=queries)
            given.add("logra", found.T if found.shape[0] == len(given.train[0]) else found, damping)


def _dividing(count: int) -> int:
    """The largest size of a batch, up to 64, that divides `count`."""
    return next(size for size in range(64, 0, -1) if count % size == 0)


def _trak(given: Given, model: nn.Module) -> None:
    if given.task not in CLASSES:
        given.unavailable["trak"] = "TRAK is about the margin of a class"
        return
    train, queries = (
        DataLoader(TensorDataset(*pair), batch_size=64, shuffle=False) for pair in (given.train, given.queries)
    )

    def single_loss(parameters: Any, pair: Any) -> Tensor:
        inputs, targets = (part.unsqueeze(0) for part in pair)
        return given.losses(functional_call(model, parameters, (inputs,)), targets).sum()

    def margin(parameters: Any, pair: Any) -> Tensor:
        logp = -single_loss(parameters, pair)
        return logp - torch.log(1 - torch.exp(logp))

    def probability(parameters: Any, pair: Any) -> Tensor:
        return torch.exp(-single_loss(parameters, pair)).reshape(1)

    # As in its own examples, gradients of the margin on both sides.
    for name, weights, regularisation in (
        (name, weights, regularisation)
        for name, weights in (("trak", given.weights), ("trak, every checkpoint", given.checkpoints))
        for regularisation in (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    ):
        with given.attempt(f"{name} {regularisation}"):
            single = AttributionTask(loss_func=margin, model=model, checkpoints=weights)
            attributor = TRAKAttributor(
                single, probability, projector_kwargs={"proj_dim": 1024}, regularization=regularisation
            )
            attributor.cache(train)
            given.add(name, attributor.attribute(queries).T, regularisation)


judge(scored)
