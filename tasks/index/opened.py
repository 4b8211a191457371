"""Indexes an audit works on: found for a method, opened, and read as rows and queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradtrail.attribution.adapters.base import TrainingData
from gradtrail.attribution.features.plan import FeaturePlan, plan_from_config
from gradtrail.attribution.features.rows import GradientBatch, StoredGradients
from gradtrail.attribution.methods.needs import DIAGONAL
from gradtrail.attribution.methods.registry import Method, find_method
from gradtrail.digests import short
from gradtrail.errors import NotFoundError, NotReadyError, StoreError, UsageError
from gradtrail.lineage.read import queries
from gradtrail.lineage.read.measuring_adapters import Connection, is_measured_by, measured_by, possible_adapters
from gradtrail.nouns import Checkpoint, Example, Index, ModelVersion, Target, Weighting
from gradtrail.storage.gradients.store import IndexTable
from gradtrail.tasks.core.extensions import load_method
from gradtrail.tasks.core.ledger_nouns import recorded_index, recorded_model_version
from gradtrail.tasks.core.models import PinnedModel
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.eigenbases import stored_basis


@dataclass(frozen=True)
class OpenIndex:
    """A sealed index with the checkpoint it measured and the plan that measured it."""

    index: Index
    checkpoint: Checkpoint
    plan: FeaturePlan
    table: IndexTable

    def rows(self, queries: int = 0) -> Iterator[GradientBatch]:
        """All rows at the pinned version, to meet so many queries if any; call it again for another pass."""
        batch_size = self.table.rows_at_once(queries) if queries else None
        for batch in self.table.stream(version=self.index.table_version, batch_size=batch_size):
            yield StoredGradients(batch)

    def queries(self, output_ids: Sequence[str], target: Target) -> GradientBatch:
        """The stored features of outputs, in the order of their ids."""
        stored = self.table.queries(output_ids)
        found = {
            output_id: row
            for row, (output_id, kept) in enumerate(zip(stored.example_ids, stored.targets, strict=True))
            if kept == target
        }
        rows = [found[output_id] for output_id in sorted(found)]
        return GradientBatch(
            example_ids=sorted(found),
            vectors=torch.tensor(stored.vectors[rows]),
            losses=torch.tensor(stored.losses[rows]),
            squared_norms=torch.tensor(stored.squared_norms[rows]),
        )

    def examples(self, pinned: PinnedModel) -> TrainingData:
        """The training examples that have a row."""
        data, left_out = pinned.training_data, self.index.coverage.quarantined
        if not left_out:
            return data
        return _Some(data, [place for place in range(len(data)) if data[place].example_id not in left_out])


class _Some:
    """The examples of a data set at some positions."""

    def __init__(self, data: TrainingData, positions: Sequence[int]) -> None:
        self._data, self._positions = data, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, position: int, /) -> Example:
        return self._data[self._positions[position]]


def method_indexes(
    workspace: Workspace,
    model_version_id: str,
    method: str,
    every_checkpoint: bool = False,
    only: str = "",
    preferred: str = "",
) -> list[str]:
    """The indexes that a method scores, in order of steps, the serving checkpoint's last.

    Only indexes that the adapter of the version measured count. A method of one index takes, of those of the serving
    checkpoint, the one whose id begins with `only`, else the
    `preferred` one if it serves the method, else the newest; tracin_cp and unrolled take, for each checkpoint, the
    newest with the same features, and `every_checkpoint` asks the same of another method that can join several.

    Raises:
        NotReadyError: if one was not built; it says how.
        NotFoundError: if `only` begins the id of none.
        UsageError: if the method cannot use several checkpoints, or `only` begins several ids.
    """
    load_method(workspace, method)
    chosen = find_method(method)
    if every_checkpoint and chosen.combination == "one":
        raise UsageError(
            f"Method {method} scores one checkpoint.",
            "Choose tracin_cp, unrolled, trak or a method with curvature, or leave --every-checkpoint out.",
        )
    with workspace.ledger().read() as connection:
        model_version = recorded_model_version(connection, model_version_id)
        there = {
            checkpoint_id: [
                index
                for index in queries.indexes_of(connection, checkpoint_id)
                if index.dataset_version_id == model_version.dataset_version_id
            ]
            for checkpoint_id in model_version.checkpoint_ids
        }
        by_checkpoint = {each: measured_by(connection, found, model_version) for each, found in there.items()}
        serving = model_version.checkpoint_ids[-1]
        built = by_checkpoint[serving]
        asked = [index for index in there[serving] if not only or index.index_id.startswith(only)]
        if asked and not any(index in built for index in asked):
            raise _of_another_adapter(connection, asked[-1], model_version)
    if only:
        built = [_named(built, model_version, only)]
    last = _newest(sorted(built, key=lambda index: index.index_id == preferred), model_version, chosen)
    if not (every_checkpoint or chosen.takes_every_checkpoint):
        return [last.index_id]
    wanted = _features(last)
    same = [[index for index in found if _features(index) == wanted] for found in by_checkpoint.values()]
    missing = [step for step, found in enumerate(same, start=1) if not found]
    if missing:
        raise NotReadyError(
            f"Method {method} needs an index of every checkpoint of {model_version_id}; {len(missing)} of {len(same)} "
            f"have none with the features of index {last.index_id[:12]}.",
            f"Build them: gradtrail index {model_version_id} --every-checkpoint{_options(last)}.",
        )
    return [found[-1].index_id for found in same]


def open_index(workspace: Workspace, pinned: PinnedModel, index_id: str) -> OpenIndex:
    """Open a recorded index, with the plan that its configuration says.

    Raises:
        ModelError: if the adapter is not the one that measured it.
        StoreError: if its table is gone, or this version of gradtrail would measure something else.
    """
    return open_index_with_model(workspace, pinned, index_id)[0]


def open_index_with_model(workspace: Workspace, pinned: PinnedModel, index_id: str) -> tuple[OpenIndex, nn.Module]:
    """`open_index`, and the model at its checkpoint, whose weights had to be read for the plan."""
    with workspace.ledger().read() as connection:
        index = recorded_index(connection, index_id)
    pinned.require_measuring(index.measured_by)
    checkpoint = next(each for each in pinned.checkpoints if each.checkpoint_id == index.checkpoint_id)
    table = workspace.gradients().existing(index_id)
    if table is None:
        raise StoreError(
            f"The gradient table of index {index_id} is gone from {workspace.gradients_uri}.",
            "Restore it from a backup, point gradients_uri to where it is, or measure it again: "
            f"{_command(pinned, index)}.",
        )
    basis = stored_basis(workspace, index.feature_config)
    model = pinned.load(checkpoint)
    plan = plan_from_config(model, index.feature_config, basis)
    return OpenIndex(index, checkpoint, plan, table), model


def _of_another_adapter(connection: Connection, index: Index, version: ModelVersion) -> NotReadyError:
    """The refusal of an index with the weights and data of a version, which another adapter may have measured."""
    name = version.model_version_id
    if is_measured_by(connection, index, version) is None:
        adapters = len(possible_adapters(connection, index))
        cause = (
            f"Index {short(index.index_id)} of the weights of {name} does not say which adapter measured it, and "
            f"{adapters} had been registered with them."
        )
    else:
        cause = f"Index {short(index.index_id)} of the weights of {name} was measured by another adapter than its own."
    return NotReadyError(cause, f"Build one of its own: gradtrail index {name}{_options(index)}.")


def _named(built: Sequence[Index], model_version: ModelVersion, prefix: str) -> Index:
    fitting = [index for index in built if index.index_id.startswith(prefix)]
    if len(fitting) > 1:
        raise UsageError(
            f"The id of {len(fitting)} indexes begins with {prefix}.",
            "Give more of it: gradtrail sql 'SELECT index_id FROM gradient_index'.",
        )
    if not fitting:
        known = ", ".join(index.index_id[:12] for index in built) or "none"
        raise NotFoundError(
            f"The serving checkpoint of {model_version.model_version_id} has no index whose id begins with {prefix}.",
            f"Choose one of its indexes ({known}), or leave --index out.",
        )
    return fitting[0]


def _newest(found: Sequence[Index], model_version: ModelVersion, method: Method) -> Index:
    name = model_version.model_version_id
    if not found:
        raise NotReadyError(
            f"The model version {name} has no index of its training data yet.", f"Build it: gradtrail index {name}."
        )
    projection = "eigen" if DIAGONAL in method.needs else "random" if method.carry else ""
    fitting = [index for index in found if projection in {"", index.feature_config["projection"]["kind"]}]
    if not fitting:
        every = " --every-checkpoint" if method.takes_every_checkpoint else ""
        raise NotReadyError(
            f"The model version {name} has no index with {projection} projection, which {method.name} needs.",
            f"Build it: gradtrail index {name} --projection {projection}{every}.",
        )
    return fitting[-1]


def _features(index: Index) -> Mapping[str, Any]:
    """What must agree between checkpoints: all but the eigenbasis, which each has of its own."""
    projection = {key: value for key, value in index.feature_config["projection"].items() if key != "digest"}
    return {**index.feature_config, "projection": projection}


def _command(pinned: PinnedModel, index: Index) -> str:
    serving = index.checkpoint_id == pinned.checkpoints[-1].checkpoint_id
    which = "" if serving else " --every-checkpoint"
    return f"gradtrail index {pinned.model_version.model_version_id}{which}{_options(index)}"


def _options(index: Index) -> str:
    """The options of `gradtrail index` that give these features again."""
    config = index.feature_config
    options = f" --group-dimension {config['group_dimension']} --seed {config['projection']['seed']}"
    if config.get("total_dimension"):
        options += f" --total-dimension {config['total_dimension']}"
    options += "".join(f" --exclude '{pattern}'" for pattern in config["exclude"])
    options += "".join(f" --fallback-for '{pattern}'" for pattern in config.get("fallback_for", ()))
    options += "" if config.get("fallback", True) else " --no-fallback"
    if config.get("autocast"):
        options += f" --autocast {config['autocast']}"
    if "stored_weighting" in config:
        options += f" --weighting {Weighting(**config['stored_weighting']).weighting_id}"
    if config["dtype"] != "float32":
        options += f" --dtype {config['dtype']}"
    return options + (" --projection eigen" if config["projection"]["kind"] == "eigen" else "")
