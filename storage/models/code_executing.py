"""The one place that may execute code found in a model file, and only after someone said so explicitly."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from gradtrail.errors import CheckpointError


def load_executing(path: Path, model_folder: Path) -> dict[str, Tensor]:
    """Read weights from a pickled or exported model. **This can execute code that the file carries.**

    Args:
        path: the file of weights.
        model_folder: the version's files; with an `MLmodel` beside it MLflow's own loader is used.

    Raises:
        CheckpointError: if it cannot be loaded, or holds neither a model nor a state_dict.
    """
    try:
        if (model_folder / "MLmodel").is_file():
            import mlflow.pytorch

            loaded = mlflow.pytorch.load_model(str(model_folder), map_location="cpu")
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=False)
    except (RuntimeError, OSError, ValueError, ImportError, AttributeError, EOFError) as error:
        raise CheckpointError(
            f"{path.name} cannot be loaded even with code execution allowed: {error}",
            "Register the weights as safetensors or as a state_dict.",
        ) from error
    weights = loaded.state_dict() if isinstance(loaded, nn.Module) else loaded
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(
            f"{path.name} holds a {type(loaded).__name__}, neither a model nor a state_dict.",
            "Register the weights as safetensors or as a state_dict.",
        )
    return {name: value.detach().cpu() for name, value in weights.items()}
