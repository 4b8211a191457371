"""A user's small project in a folder of its own, for measurements of whole flows: adapter, model, outputs, settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gradtrail.attribution.adapters.loading import load_adapter
from gradtrail.settings import Settings, embedded_tracking_uri
from gradtrail.storage.models.registry import RegisteredVersion
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.ingest.registering import register_model

MODEL = "small@champion"
CLASSES = 3
FEATURES = 4

_ADAPTER = """
import torch
from torch import nn

import gradtrail

EXAMPLES, HIDDEN = {examples}, {hidden}


class Adapter(gradtrail.ClassificationAdapter):
    def build_model(self):
        return nn.Sequential(nn.Linear(4, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3))

    def training_data(self):
        inputs = torch.randn(EXAMPLES, 4, generator=torch.Generator().manual_seed(7))
        labels = inputs[:, :3].argmax(1).tolist()
        return [
            gradtrail.Example(
                f"row-{{i}}", inputs[i], labels[i], {{"source": f"source-{{i % 5}}", "licence": "CC0-1.0"}}
            )
            for i in range(EXAMPLES)
        ]
"""


@dataclass(frozen=True)
class SmallProject:
    """`examples` rows of four numbers in three classes, and a model of two layers.

    Attributes:
        folder: holds the adapter's module, and the home folder.
        examples: size of the training set.
        hidden: width of the model.
        tracking_uri: where MLflow is; empty is a sqlite file in the home folder.
    """

    folder: Path
    examples: int = 40
    hidden: int = 6
    tracking_uri: str = ""

    @property
    def module(self) -> str:
        """Name of the adapter's module."""
        return f"small_{self.examples}_{self.hidden}"

    @property
    def home(self) -> Path:
        """The home folder."""
        return self.folder / "home"

    @property
    def settings(self) -> Settings:
        """Settings that allow the adapter."""
        return Settings(
            home=self.home,
            mlflow_tracking_uri=self.tracking_uri or embedded_tracking_uri(self.home),
            allowed_adapters=(f"{self.module}:Adapter",),
            adapter_path=self.folder,
        )

    @property
    def workspace(self) -> Workspace:
        """Where everything of this project lives."""
        return self.settings.workspace()

    def register(self) -> RegisteredVersion:
        """Register an initialised model as the next version, and let the alias follow."""
        self.home.mkdir(parents=True, exist_ok=True)
        text = _ADAPTER.format(examples=self.examples, hidden=self.hidden)
        (self.folder / f"{self.module}.py").write_text(text)
        name = f"{self.module}:Adapter"
        adapter = load_adapter(name, allowed=[name], search_path=self.folder).adapter
        torch.manual_seed(0)
        return register_model(
            self.workspace.registry(),
            adapter.build_model(),
            adapter=adapter,
            training_data=None,
            name="small",
            checkpoints=[],
            aliases=["champion"],
            parameters={},
            run_id="",
        )

    def drop(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Put outputs into the inbox as one file."""
        self.workspace.inbox.mkdir(parents=True, exist_ok=True)
        with (self.workspace.inbox / name).open("w") as stream:
            stream.writelines(json.dumps(record) + "\n" for record in records)


def records(numbers: Iterable[int], version: int = 1, day: int = 1) -> Iterable[dict[str, Any]]:
    """Outputs of a model version, the same for the same numbers."""
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        yield {
            "record_id": f"out-{number}",
            "model": "small",
            "version": version,
            "time": f"2026-02-{day:02d}T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}+00:00",
            "inputs": torch.randn(FEATURES, generator=generator).tolist(),
            "prediction": number % CLASSES,
        }
