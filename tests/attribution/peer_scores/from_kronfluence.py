"""EK-FAC scores of kronfluence 1.0.1 for a small network, in float64 throughout, with its weights and data.

Run in an environment that has kronfluence: `python from_kronfluence.py kronfluence.safetensors`.
"""

from __future__ import annotations

import sys
import tempfile

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Subset, TensorDataset

EXAMPLES, QUERIES = 40, 6


class Classification(Task):
    """Summed cross entropy, on both sides."""

    def compute_train_loss(self, batch, model, sample=False):  # noqa: ARG002 (the interface)
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)


def main() -> None:
    """Write the file named on the command line."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.Tanh(), nn.Conv2d(4, 6, 2), nn.Tanh(), nn.Flatten(),
        nn.Linear(24, 7), nn.ReLU(), nn.Linear(7, 5),
    )  # fmt: skip
    saved = {f"model.{name}": tensor.clone() for name, tensor in network.state_dict().items()}
    saved["inputs"] = torch.randn(EXAMPLES, 1, 6, 6)
    saved["targets"] = torch.randint(5, (EXAMPLES,))
    data, task, double = TensorDataset(saved["inputs"], saved["targets"]), Classification(), torch.float64
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "peer", prepare_model(network, task), task, cpu=True, output_dir=folder, disable_model_save=True
        )
        factors = FactorArguments(
            strategy="ekfac",
            use_empirical_fisher=True,
            activation_covariance_dtype=double,
            gradient_covariance_dtype=double,
            eigendecomposition_dtype=double,
            per_sample_gradient_dtype=double,
            lambda_dtype=double,
        )
        analyzer.fit_all_factors("factors", data, factor_args=factors, per_device_batch_size=16)
        scoring = ScoreArguments(
            damping_factor=1e-3, score_dtype=double, precondition_dtype=double, per_sample_gradient_dtype=double
        )
        analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            Subset(data, range(QUERIES)),
            data,
            per_device_query_batch_size=QUERIES,
            per_device_train_batch_size=16,
            score_args=scoring,
        )
        saved["scores"] = analyzer.load_pairwise_scores("scores")["all_modules"].contiguous()
    save_file(saved, sys.argv[1])


main()
