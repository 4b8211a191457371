"""Is the model at a minimum? Methods that invert a curvature assume it, and further training shows whether it is so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from gradtrail.attribution.adapters.base import measured_outputs
from gradtrail.attribution.fidelity.further_training import FurtherTraining

NOTICEABLE_CHANGE = 0.1
"""The part of its loss that a model at a minimum does not lose by further training."""
_SAMPLED_GRADIENTS = 64


@dataclass(frozen=True)
class Stationarity:
    """How far a model is from a minimum of its training loss.

    Attributes:
        gradient_ratio: ‖mean gradient‖ over the root mean square of single examples' ‖gradient‖: 0 at a minimum, at
            most about 1, where all examples pull the same way.
        loss_before: mean training loss of the model as it is.
        loss_after: the same after `steps` of further training on all data; not finite where that diverged.
        steps: the longest amount of the recipe.
    """

    gradient_ratio: float
    loss_before: float
    loss_after: float
    steps: int

    @property
    def loss_change(self) -> float:
        """The change of the mean training loss as a part of it: negative where it fell."""
        if self.loss_before == self.loss_after:
            return 0.0
        return (self.loss_after - self.loss_before) / max(abs(self.loss_before), np.finfo(float).tiny)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a report must say about it, as whole sentences; none at a minimum."""
        if self.loss_change < -NOTICEABLE_CHANGE:
            return (
                f"The model is not at a minimum: {self.steps} steps of further training on all data lower its mean "
                f"training loss by {-self.loss_change:.0%}, from {self.loss_before:.3g} to {self.loss_after:.3g}. "
                "Effects are measured between models that still learn, and methods that invert a curvature assume a "
                "minimum.",
            )
        if self.loss_change > NOTICEABLE_CHANGE or not np.isfinite(self.loss_after):
            return (
                f"Further training on all data raises the mean training loss from {self.loss_before:.3g} to "
                f"{self.loss_after:.3g} in {self.steps} steps: its learning rate is too large for this model.",
            )
        return ()


def measure_stationarity(training: FurtherTraining, *, seed: int = 0) -> Stationarity:
    """A pass over the training data for its mean gradient, a run of further training, and the loss before and after.

    The single gradients are those of at most 64 examples, drawn by `seed`; the run has the same seed.

    Raises:
        ModelError: when further training diverges beyond all numbers.
    """
    loop = training.loop
    model = training.begin()
    before = loop.mean_training_loss(model)
    ratio = _gradient_ratio(training, model, seed)
    last = training.recipe.steps[-1]
    loop.run(model, seed, most_steps=last)
    return Stationarity(ratio, before, loop.mean_training_loss(model), last)


def _gradient_ratio(training: FurtherTraining, model: nn.Module, seed: int) -> float:
    count = len(training.training)
    size = training.recipe.batch_size
    whole = torch.zeros(0, dtype=torch.float64)
    for start in range(0, count, size):
        part = _gradient(training, model, range(start, min(start + size, count)))
        whole = part if not len(whole) else whole + part
    drawn = np.random.default_rng(seed).permutation(count)[:_SAMPLED_GRADIENTS].tolist()
    squares = [_gradient(training, model, [place]).square().sum().item() for place in drawn]
    typical = float(np.sqrt(np.mean(squares)))
    return (whole / count).norm().item() / typical if typical else 0.0


def _gradient(training: FurtherTraining, model: nn.Module, places: range | list[int]) -> torch.Tensor:
    """Of the summed training loss of some examples, with respect to all that is trained: one float64 vector."""
    adapter = training.adapter
    batch = adapter.collate([training.training[place] for place in places]).to(training.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.inference_mode(False), torch.enable_grad():
        loss = adapter.losses(measured_outputs(adapter, model, batch), batch).sum()
        found = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.detach().double().flatten() for gradient in found])
