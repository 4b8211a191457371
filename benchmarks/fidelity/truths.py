"""The truths of a task: what further training and retraining really do, kept in files and resumed from them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from machine import ROOT
from safetensors.torch import load_file, save_file
from torch import nn

from fidelity.tasks import Task
from gradtrail.attribution.fidelity.effects import Effects
from gradtrail.attribution.fidelity.further_training import FurtherTraining, measure_effects
from gradtrail.attribution.fidelity.removed_sets import random_halves, single_examples
from gradtrail.attribution.yardsticks.lds import Retrained
from gradtrail.attribution.yardsticks.retraining import Retraining, retrain_on_subsets
from gradtrail.digests import content_sha256, sha256_json, short
from gradtrail.storage.files.atomic import replacing
from gradtrail.storage.files.kept_runs import KeptRuns

CACHE = ROOT / ".cache" / "fidelity"
FRACTIONS = (0.25, 0.5, 0.75, 1.0)
"""Of training, at which checkpoints are kept for methods that read several; the last is the one that is judged."""
KINDS = ("subset", "loo", "retrained")
_SUBSET_SEED, _JUDGED_SEED, _UNROLLED_SEED, _AGAIN_SEED, _FIRST_RETRAINED_SEED = 2303, 0, 1000, 5000, 100


@dataclass(frozen=True)
class Checkpoint:
    """A network after some steps of training."""

    step: int
    learning_rate: float
    model: nn.Module


class Truths:
    """Of one task; every run that was finished is read from its file."""

    def __init__(self, task: Task, cache: Path = CACHE) -> None:
        self.task = task
        self.folder = cache / f"{task.name}-{short(self.digest)}"

    @cached_property
    def digest(self) -> str:
        """Of all that a run depends on besides its seed and left-out set: data, network, recipes, torch."""
        task = self.task
        described = asdict(task)
        # How many are measured says nothing about a single run.
        described["amounts"] = {"training": task.amounts.training, "queries": list(task.amounts.queries)}
        described["fitting"] = {name: repr(value) for name, value in asdict(task.fitting).items()}
        described["rate"] = repr(task.rate)
        described["steps"] = list(task.steps)
        described["start"] = self._start()
        described["torch"] = str(torch.__version__)
        described["data"] = [one.content_sha256 for one in (*task.data.training, *task.data.queries)]
        return sha256_json(described)

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """Of one training on all examples, in order of steps."""
        found = []
        for fraction in FRACTIONS:
            step = max(1, round(fraction * self.task.fitting.steps))
            found.append(Checkpoint(step, self.task.fitting.rate(step), self._kept(fraction, step)))
        return found

    @property
    def model(self) -> nn.Module:
        """The one that is judged."""
        return self.checkpoints[-1].model

    @cached_property
    def example_ids(self) -> list[str]:
        """Of the training examples, in order."""
        return [example.example_id for example in self.task.data.training]

    @cached_property
    def subset(self) -> Effects:
        """Effects of random halves on all queries."""
        amounts = self.task.amounts
        return self._effects("subset", random_halves(self.example_ids, amounts.halves), amounts.half_seeds)

    @cached_property
    def loo(self) -> Effects:
        """Effects of single examples on all queries."""
        amounts = self.task.amounts
        return self._effects("loo", single_examples(self.example_ids, amounts.singles), amounts.single_seeds)

    @cached_property
    def retrained(self) -> Retrained:
        """Losses of all queries under networks trained from scratch on halves."""
        amounts = self.task.amounts
        sets = random_halves(self.example_ids, amounts.subsets, _SUBSET_SEED)
        seeds = range(_FIRST_RETRAINED_SEED, _FIRST_RETRAINED_SEED + amounts.subset_seeds)
        kept = KeptRuns(self.folder / "retrained")
        return retrain_on_subsets(self._retraining, sets, seeds, known=kept.get, keep=kept.put)

    def further_trained(self, steps: int, order: int) -> nn.Module:
        """The judged network after further training on all examples, in an order that no truth was measured with."""
        model = self._further.begin()
        if steps:
            self._further.loop.run(model, _UNROLLED_SEED + order, most_steps=steps)
        return model.eval()

    def trained_again(self, number: int) -> nn.Module:
        """Another network, trained from scratch on all examples with a seed that no truth has."""
        return self._retraining.trained(_AGAIN_SEED + number)

    def measure(self, kind: str) -> Effects | Retrained:
        """One of `KINDS`."""
        found: dict[str, Callable[[], Effects | Retrained]] = {
            "subset": lambda: self.subset,
            "loo": lambda: self.loo,
            "retrained": lambda: self.retrained,
        }
        return found[kind]()

    def missing(self, kind: str) -> int:
        """Runs that are not in their files."""
        amounts = self.task.amounts
        wanted = {
            "subset": amounts.half_seeds * (amounts.halves + 1),
            "loo": amounts.single_seeds * (amounts.singles + 1),
            "retrained": amounts.subset_seeds * amounts.subsets,
        }[kind]
        return max(0, wanted - len(list((self.folder / kind).glob("*.npy"))))

    def seconds(self) -> dict[str, float]:
        """What the missing runs of each kind take on one core, from a few steps timed now."""
        further, retraining = self._further.cost(), self._retraining.cost()
        return {
            kind: retraining.of(self.task.fitting.recipe, self.missing(kind))
            if kind == "retrained"
            else further.of(self.task.recipe, self.missing(kind))
            for kind in KINDS
        }

    @cached_property
    def _retraining(self) -> Retraining:
        data = self.task.data
        return Retraining(self.task.adapter, data.training, data.queries, self.task.fitting.recipe)

    @property
    def _further(self) -> FurtherTraining:
        data = self.task.data
        return FurtherTraining(self.task.adapter, self.model, data.training, data.queries, self.task.recipe)

    def _start(self) -> str:
        """Digest of the untrained network and of the losses that it gives: of architecture, first weights and loss."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_JUDGED_SEED)
            model = self.task.adapter.build_model()
        weights = {name: value.numpy() for name, value in model.state_dict().items()}
        return content_sha256(weights, self._retraining.loop.query_losses(model, "before training"))

    def _kept(self, fraction: float, step: int) -> nn.Module:
        """From its file, once it was trained."""
        path = self.folder / "checkpoints" / f"step-{step}.safetensors"
        if path.is_file():
            with torch.random.fork_rng(devices=[]):
                model = self.task.adapter.build_model()
            model.load_state_dict(load_file(path))
            return model.eval()
        model = self._retraining.trained(_JUDGED_SEED) if fraction == 1 else self._early(step)
        with replacing(path) as temporary:
            save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
        return model

    def _early(self, step: int) -> nn.Module:
        """The same training, stopped: same seed, same order, same fall of the rate."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_JUDGED_SEED)
            model = self.task.adapter.build_model().train()
            self._retraining.loop.run(model, _JUDGED_SEED, most_steps=step)
        return copy.deepcopy(model).eval()

    def _effects(self, kind: str, removed: list[frozenset[str]], seeds: int) -> Effects:
        kept = KeptRuns(self.folder / kind)
        named = "subset" if kind == "subset" else "loo"
        return measure_effects(
            self._further,
            removed,
            range(seeds),
            kind=named,
            known=kept.get,
            keep=kept.put,
        )
