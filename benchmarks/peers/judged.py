"""What a peer is given to score (weights, data, dampings) and how it hands its scores back; for `judge_*.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fidelity import networks
from prepared import CannotDoError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Given:
    """The checkpoints of a task (the last is judged), its training examples and its queries.

    `dampings` are those that our own methods try: absolute, for a curvature that is a mean over examples.
    """

    def __init__(self, folder: Path) -> None:
        said = json.loads((folder / "given.json").read_text())
        self.task: str = said["task"]
        self.dampings: list[float] = said["dampings"]
        tensors = load_file(folder / "given.safetensors")
        self.train = (tensors["train_inputs"], tensors["train_targets"])
        self.queries = (tensors["query_inputs"], tensors["query_targets"])
        self.checkpoints = [_of(tensors, f"checkpoint{place}.") for place in range(said["checkpoints"])]
        self.weights = self.checkpoints[-1]
        self._toy: bool = said["toy"]
        self._folder = folder
        self._scores: dict[str, Tensor] = {}
        self._described: list[dict[str, Any]] = []
        self.unavailable: dict[str, str] = {}

    def model(self) -> nn.Module:
        """A new copy."""
        model = networks.build(self.task, toy=self._toy)
        model.load_state_dict(self.weights)
        return model

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As the network was trained: (batch,)."""
        return networks.losses(self.task, outputs, targets)

    def add(self, method: str, scores: Tensor, damping: float | None = None, **parameters: Any) -> None:
        """Scores (queries, examples), where more means that the example lowers the query's loss more.

        What is not finite is recorded as unavailable.
        """
        if not torch.isfinite(scores).all():
            self.unavailable[f"{method} {damping}"] = "its scores are not finite"
            return
        wanted = (len(self.queries[0]), len(self.train[0]))
        if tuple(scores.shape) != wanted:
            raise ValueError(f"{method}: scores of shape {tuple(scores.shape)}, not {wanted}")
        self._scores[str(len(self._described))] = scores.detach().float().contiguous()
        self._described.append({"method": method, "damping": damping, "parameters": parameters})

    @contextmanager
    def attempt(self, method: str) -> Iterator[None]:
        """Whatever the peer raises becomes the reason why the method has no row."""
        try:
            yield
        except Exception as fault:
            lines = str(fault).strip().splitlines() or [""]
            named = "" if isinstance(fault, CannotDoError) else f"{type(fault).__name__}: "
            self.unavailable[method] = f"{named}{lines[0][:200]}"
        self.write()

    def write(self) -> None:
        """Everything so far, for the other environment; whoever stops this process finds what was finished."""
        tensors, said = (self._folder / name for name in ("scores.safetensors", "scores.json"))
        save_file(self._scores, tensors.with_suffix(".part"))
        tensors.with_suffix(".part").replace(tensors)
        found: Mapping[str, Any] = {"scores": self._described, "unavailable": self.unavailable}
        said.with_suffix(".part").write_text(json.dumps(found))
        said.with_suffix(".part").replace(said)


def _of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def judge(scored: Callable[[Given, Path], None]) -> None:
    """Run one peer on the folder named on the command line."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    given = Given(folder)
    scored(given, folder)
    given.write()
