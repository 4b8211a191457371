"""traker: TRAK over all parameters, unprojected where they are few, at several regularisations."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from judged import Given, judge
from torch import nn
from trak import TRAKer
from trak.projectors import NoOpProjector

REGULARISATIONS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Its own unit: the kernel is a sum over examples of gradients divided by the square root of their size."""


def scored(given: Given, folder: Path) -> None:
    model: nn.Module = given.model()
    size = sum(parameter.numel() for parameter in model.parameters())
    settings = [
        (name, regularisation) for name in ("trak", "trak, every checkpoint") for regularisation in REGULARISATIONS
    ]
    for place, (name, regularisation) in enumerate(settings):
        checkpoints = [given.weights] if name == "trak" else given.checkpoints
        with given.attempt(f"{name} {regularisation}"):
            traker = TRAKer(
                model,
                "image_classification",
                train_set_size=len(given.train[0]),
                save_dir=str(folder / f"traker-{place}"),
                device="cpu",
                projector=NoOpProjector(size, size, 0, None, "cpu"),  # type: ignore[arg-type]  # as its own tests do
                proj_dim=size,
                use_half_precision=False,
                lambda_reg=regularisation,
                logging_level=logging.ERROR,
            )
            for number, weights in enumerate(checkpoints):
                traker.load_checkpoint(weights, model_id=number)
                traker.featurize(list(given.train), num_samples=len(given.train[0]))
            traker.finalize_features()
            for number, weights in enumerate(checkpoints):
                traker.start_scoring_checkpoint("judged", weights, model_id=number, num_targets=len(given.queries[0]))
                traker.score(list(given.queries), num_samples=len(given.queries[0]))
            found = torch.tensor(traker.finalize_scores(exp_name="judged"))
            given.add(name, found.T, regularisation)


judge(scored)
