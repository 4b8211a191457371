"""TRAK scores of traker 0.3.2 for a small network without projection, in float32, with its weights and data.

Run in an environment that has traker: `python from_traker.py traker.safetensors`. traker divides the inverse kernel by
the mean of its absolute entries, so that scores agree up to one factor; and gradients by √parameters, which scales λ.
"""

from __future__ import annotations

import sys
import tempfile

import torch
from safetensors.torch import save_file
from torch import nn
from trak import TRAKer
from trak.projectors import NoOpProjector

EXAMPLES, QUERIES, REGULARISATION = 120, 6, 1e-3


def main() -> None:
    """Write the file named on the command line."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 5))
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    inputs, targets = torch.randn(EXAMPLES, 1, 3, 4), torch.randint(5, (EXAMPLES,))
    size = sum(parameter.numel() for parameter in network.parameters())
    with tempfile.TemporaryDirectory() as folder:
        traker = TRAKer(
            model=network,
            task="image_classification",
            train_set_size=EXAMPLES,
            save_dir=folder,
            device="cpu",
            projector=NoOpProjector(size, size, 0, None, "cpu"),
            proj_dim=size,
            use_half_precision=False,
            lambda_reg=REGULARISATION,
        )
        traker.load_checkpoint(weights, model_id=0)
        traker.featurize(batch=(inputs, targets), num_samples=EXAMPLES)
        traker.finalize_features()
        traker.start_scoring_checkpoint(exp_name="peer", checkpoint=weights, model_id=0, num_targets=QUERIES)
        traker.score(batch=(inputs[:QUERIES], targets[:QUERIES]), num_samples=QUERIES)
        scores = torch.tensor(traker.finalize_scores(exp_name="peer")).T.contiguous()
    saved = {f"model.{name}": tensor for name, tensor in weights.items()}
    ridge = torch.tensor(REGULARISATION * size, dtype=torch.float64)
    save_file({**saved, "inputs": inputs, "targets": targets, "scores": scores, "ridge": ridge}, sys.argv[1])


main()
