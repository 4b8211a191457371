"""The small project of the committed home: adapter, outputs, settings. Any gradtrail since f0bbf55 can run it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gradtrail.settings import Settings

MODEL = "old@champion"
ADAPTER = "old_home_adapter:Adapter"
PLACE = Path("/tmp/gradtrail-f0bbf55")  # noqa: S108 - paths under it are in the ledger of the committed home

_ADAPTER_TEXT = """
import math

import torch
from torch import nn

import gradtrail


class Adapter(gradtrail.ClassificationAdapter):
    def build_model(self):
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

    def training_data(self):
        return [
            gradtrail.Example(
                f"row-{i}",
                torch.tensor([math.sin(i * (j + 1)) for j in range(4)]),
                i % 3,
                {
                    "source": "left" if i % 2 else "right",
                    "licence": "CC0-1.0" if i % 3 else "GPL-3.0",
                    "author": f"Jane Secret {i % 7}",
                },
            )
            for i in range(24)
        ]
"""


@dataclass(frozen=True)
class OldProject:
    """The project in a folder: the adapter's module, a signing key and the home folder."""

    folder: Path

    @property
    def settings(self) -> Settings:
        """Everything embedded; audits are signed; authors are personal."""
        return Settings(
            home=self.folder / "home",
            allowed_adapters=(ADAPTER,),
            adapter_path=self.folder,
            personal_attributes=("author",),
            signing_key=self.folder / "key.pem",
        )

    def write_adapter(self) -> None:
        """Write the adapter's module."""
        (self.folder / f"{ADAPTER.partition(':')[0]}.py").write_text(_ADAPTER_TEXT.lstrip())

    def adapter(self) -> Any:
        """The adapter, loaded as gradtrail loads it: by the name that the commit at hand has for that."""
        try:
            from gradtrail.attribution.adapters.loading import load_adapter
        except ImportError:
            from gradtrail.attribution.adapter_loading import load_adapter  # type: ignore[import-not-found,no-redef]
        return load_adapter(ADAPTER, allowed=[ADAPTER], search_path=self.folder).adapter

    def weights(self, step: int) -> torch.nn.Module:
        """The model after a step of its training, which is made up: seeded weights that shrink."""
        torch.manual_seed(0)
        model: torch.nn.Module = self.adapter().build_model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + step / 100)
        return model

    def drop(self, name: str, *numbers: int) -> None:
        """Put outputs of the serving model into the inbox."""
        model = self.weights(20)
        inbox = self.settings.workspace().inbox
        inbox.mkdir(parents=True, exist_ok=True)
        lines = []
        for number in numbers:
            inputs = [math.cos(number * (j + 1)) for j in range(4)]
            with torch.no_grad():
                prediction = int(model(torch.tensor([inputs])).argmax())
            record = {
                "record_id": f"out-{number}",
                "model": "old",
                "version": 1,
                "time": f"2026-02-01T00:{number:02d}:00+00:00",
                "inputs": inputs,
                "prediction": prediction,
                "note": f"secret note {number}",
            }
            lines.append(json.dumps(record) + "\n")
        (inbox / name).write_text("".join(lines))
