"""Index: one pass over the training data writes a projected gradient per example to LanceDB."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import nn

from gradtrail.attribution.adapters import TrainingData
from gradtrail.attribution.capture import iterate_features
from gradtrail.attribution.checks import check_capture, check_determinism
from gradtrail.attribution.feature_rows import FeatureRows
from gradtrail.attribution.features import FeaturePlan, FeatureSettings, plan_features
from gradtrail.attribution.health import gradient_health
from gradtrail.attribution.memory import MEMORY_BUDGET, MOST_EXAMPLES
from gradtrail.attribution.shards import Shard
from gradtrail.attribution.weights import group_weights, stored_vectors
from gradtrail.errors import DataError, StoreError, UsageError
from gradtrail.lineage import queries
from gradtrail.nouns import Checkpoint, Coverage, Example, Index, ManifestRow, Weighting, index_id
from gradtrail.storage.appending import COMMIT_BYTES, Appending
from gradtrail.storage.gradients import IndexTable, VectorType
from gradtrail.storage.manifests import read_manifest
from gradtrail.storage.write_behind import write_behind
from gradtrail.tasks.datasets import checked_example, refuse_drift
from gradtrail.tasks.eigenbases import eigen_plan
from gradtrail.tasks.estimates import PassEstimate, estimate_pass
from gradtrail.tasks.models import PinnedModel, pinned_model
from gradtrail.tasks.progress import ProgressBar, progress_bar, say
from gradtrail.tasks.recorded import manifest_sha256, recorded_model_version
from gradtrail.tasks.weightings import found_weighting
from gradtrail.tasks.worker_processes import run_in_processes
from gradtrail.tasks.workspace import Workspace

MEASURE_BATCH = 64
LARGEST_BATCH = MOST_EXAMPLES
DETERMINISM_BATCH = 8
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class IndexOptions:
    """How gradients are stored.

    Attributes:
        group_dimension: numbers kept a parameter group.
        seed: of the random projection.
        device: where the pass runs.
        projection: `random`, or `eigen` for the eigenbasis of the Kronecker factors.
        factors: curvature kind of those factors; empty picks `fisher` where the adapter can sample.
        dtype: what vectors are stored as; `int8` keeps a scale for each row and group.
        total_dimension: numbers kept for all groups together, shared out by their sizes; instead of `group_dimension`.
        autocast: `bfloat16` runs the model in lower precision where torch does.
        exclude: patterns on names of modules and parameters to leave out; reports say so.
        fallback: whether parameters without a layer rule are measured by autograd.
        fallback_for: patterns on names of modules to measure by autograd although they have a rule.
        memory_budget: bytes of the pass beside the model; batches are made to fit.
        weighting: beginning of the id of a learned weighting, or its aspect, to store vectors under; empty is uniform.
        shard: `k/n` measures every n-th missing example only; a run without it completes and seals the index.
        workers: processes on this machine that share the measuring, with a part of its cores and of the budget each; a
            script that asks for several begins its work under `if __name__ == "__main__":`, for each imports it.
    """

    group_dimension: int = 256
    seed: int = 0
    device: str = "cpu"
    projection: Literal["random", "eigen"] = "random"
    factors: str = ""
    dtype: VectorType = "float32"
    total_dimension: int | None = None
    autocast: Literal["none", "bfloat16"] = "none"
    exclude: tuple[str, ...] = ()
    fallback: bool = True
    fallback_for: tuple[str, ...] = ()
    memory_budget: int = MEMORY_BUDGET
    shard: str = "1/1"
    weighting: str = ""
    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"An index measured by {self.workers} workers.", "Choose at least 1.")

    def for_worker(self, number: int) -> IndexOptions:
        """What worker `number`, from 1, measures: its part of the shard, on one of the devices if there are several."""
        several = self.device == "cuda" and torch.cuda.device_count() > 1
        return replace(
            self,
            shard=str(Shard.of_text(self.shard).part(number, self.workers)),
            device=f"cuda:{(number - 1) % torch.cuda.device_count()}" if several else self.device,
            memory_budget=self.memory_budget // self.workers,
            workers=1,
        )

    def plan(self, pinned: PinnedModel, stored: Weighting | None = None) -> FeaturePlan:
        """The groups of this model and how each is stored, under the weighting `stored`.

        Raises:
            UsageError: when the weighting is of other groups.
        """
        settings = FeatureSettings(
            group_dimension=self.group_dimension,
            seed=self.seed,
            dtype=self.dtype,
            total_dimension=self.total_dimension,
            autocast=self.autocast,
            exclude=tuple(self.exclude),
            fallback=self.fallback,
            fallback_for=tuple(self.fallback_for),
            stored_weighting=stored if stored is not None and stored.group_weights else None,
        )
        plan = plan_features(pinned.load(pinned.serving), settings)
        group_weights(plan.stored_weighting or Weighting(), plan)
        return plan


@dataclass(frozen=True)
class IndexOutcome:
    """What an index pass did; `complete` is False after one shard of several.

    `warnings` say what of the model or the data has no gradient.
    """

    index_id: str
    new: bool
    rows_written: int
    rows_resumed: int
    quarantined: int
    complete: bool = True
    warnings: tuple[str, ...] = ()


@task(cache_policy=NO_CACHE)
def list_checkpoints(workspace: Workspace, model_version_id: str, every: bool) -> list[str]:
    """The checkpoints to index: the serving one, or all in order of steps."""
    with workspace.ledger().read() as connection:
        ids = recorded_model_version(connection, model_version_id).checkpoint_ids
    return list(ids if every else ids[-1:])


@task(cache_policy=NO_CACHE)
def build_index(workspace: Workspace, model_version_id: str, checkpoint_id: str, options: IndexOptions) -> IndexOutcome:
    """Measure every training example that the index does not hold yet, check that none is missing, pin and record it.

    A killed pass resumes where it stopped: rows are keyed by example id and content.

    Raises:
        ModelError: if the model's losses are random or coupled, or nothing of it can be measured.
        DataError: if the training data is not what the dataset version recorded.
        UsageError: if a budget is too small for the model, or the shard does not exist.
        WorkerLostError: if one of several workers was killed.
    """
    shard = Shard.of_text(options.shard)
    pinned = pinned_model(workspace, model_version_id)
    checkpoint = next(c for c in pinned.checkpoints if c.checkpoint_id == checkpoint_id)
    plan = options.plan(pinned, found_weighting(workspace, model_version_id, options.weighting))
    if options.projection == "eigen":
        plan = eigen_plan(workspace, pinned, checkpoint, plan, options.factors, options.device)
    planned_id = index_id(checkpoint_id, pinned.dataset.dataset_version_id, plan.config())
    with workspace.ledger().read() as connection:
        if queries.index(connection, planned_id) is not None:
            return IndexOutcome(planned_id, new=False, rows_written=0, rows_resumed=0, quarantined=0)

    model = pinned.load(checkpoint).to(options.device)
    manifest, attribute_names = _manifest(workspace, pinned)
    table = workspace.gradients().open_index(
        planned_id,
        dimension=plan.dimension,
        group_count=len(plan.groups),
        attribute_names=attribute_names,
        config=plan.config(),
        dtype=options.dtype,
        group_dimensions=[group.dimension for group in plan.groups],
    )
    training_data = _training_data(pinned, len(manifest))
    present = table.present()
    estimate = _checked_estimate(pinned, model, plan, training_data, options)
    missing = sum(name not in present and shard.holds(place) for place, name in enumerate(manifest))
    if missing:
        say(estimate.sentence(missing, options.workers))

    quarantined: dict[str, str] = {}
    resumed = len(present)
    with (
        progress_bar("measuring gradients", len(manifest)) as bar,
        Appending(table, commit_bytes=COMMIT_BYTES) as appending,
    ):
        bar.advance(len(present))
        if options.workers > 1 and missing:
            _measure_by_workers(workspace, model_version_id, checkpoint_id, options, table, bar)
            present = table.present()
        # What workers have left: nothing, or examples to quarantine.
        rows = iterate_features(
            pinned.adapter,
            model,
            _missing_examples(training_data, manifest, present, shard),
            plan,
            batch_size=estimate.batch_size,
            device=options.device,
            on_non_finite=quarantined.__setitem__,
        )
        ahead = max(1, COMMIT_BYTES // (4 * plan.dimension * estimate.batch_size))
        add = partial(_append, appending, manifest, attribute_names)
        for batch, _ in write_behind(_as_stored(rows, plan), add, ahead=ahead):
            bar.advance(len(batch.example_ids))
    written = len(present) - resumed + appending.written
    if shard.count > 1:
        return IndexOutcome(planned_id, True, written, resumed, len(quarantined), complete=False)
    workspace.ledger().record_index(_sealed(table, pinned, checkpoint, plan, manifest, quarantined))
    norms = (torch.tensor(batch.squared_norms) for batch in table.stream(columns=["squared_norms"]))
    health = gradient_health(norms, plan)
    return IndexOutcome(planned_id, True, written, resumed, len(quarantined), warnings=health.warnings())


def _measure_by_workers(
    workspace: Workspace,
    model_version_id: str,
    checkpoint_id: str,
    options: IndexOptions,
    table: IndexTable,
    bar: ProgressBar,
) -> None:
    """Let several processes fill the table; what they have stored when one of them fails stays."""
    threads = max(1, torch.get_num_threads() // options.workers)
    seen = table.count()

    def show() -> None:
        nonlocal seen
        before, seen = seen, table.count()
        bar.advance(seen - before)

    own = [options.for_worker(number) for number in range(1, options.workers + 1)]
    calls = [(workspace, model_version_id, checkpoint_id, each, threads) for each in own]
    run_in_processes(_measure_part, calls, meanwhile=show, every=_LOOK_SECONDS)


def _measure_part(
    workspace: Workspace, model_version_id: str, checkpoint_id: str, options: IndexOptions, threads: int
) -> None:
    torch.set_num_threads(threads)
    build_index.fn(workspace, model_version_id, checkpoint_id, options)


@task(cache_policy=NO_CACHE)
def publish_snapshot(workspace: Workspace) -> str:
    """Publish the ledger for ad hoc readers; returns the snapshot's path."""
    return str(workspace.ledger().publish_snapshot())


def _manifest(workspace: Workspace, pinned: PinnedModel) -> tuple[dict[str, ManifestRow], list[str]]:
    """The recorded examples by id, in order, and the names of their attributes that are not personal."""
    with workspace.ledger().read() as connection:
        digest = manifest_sha256(connection, pinned.dataset.dataset_version_id)
        personal = queries.personal_names(connection, pinned.dataset.dataset_version_id)
    manifest = {row.example_id: row for row in read_manifest(Path(pinned.dataset.manifest_uri), expected_sha256=digest)}
    names = {name for row in manifest.values() for name in row.attributes}
    return manifest, sorted(names - personal.union(workspace.personal_attributes))


def _training_data(pinned: PinnedModel, recorded: int) -> TrainingData:
    training_data = pinned.adapter.training_data()
    if len(training_data) != recorded:
        raise DataError(
            f"The adapter {pinned.model_version.adapter} returns {len(training_data)} training examples; the dataset "
            f"version has {recorded}.",
            "Let it return the data that the model was registered with, or register the model again.",
        )
    return training_data


def _checked_estimate(
    pinned: PinnedModel, model: nn.Module, plan: FeaturePlan, training_data: TrainingData, options: IndexOptions
) -> PassEstimate:
    """What the pass will need, once the first examples have shown that it can be trusted."""
    first = [checked_example(training_data[i], i) for i in range(min(DETERMINISM_BATCH, len(training_data)))]
    check_determinism(pinned.adapter, model, first, options.device)
    check_capture(pinned.adapter, model, first, plan, options.device)
    return estimate_pass(
        pinned.adapter,
        model,
        first,
        plan,
        rows=len(training_data),
        dtype=options.dtype,
        memory_budget=options.memory_budget // options.workers,
        largest_batch=LARGEST_BATCH,
        device=options.device,
    )


def _sealed(
    table: IndexTable,
    pinned: PinnedModel,
    checkpoint: Checkpoint,
    plan: FeaturePlan,
    manifest: dict[str, ManifestRow],
    quarantined: dict[str, str],
) -> Index:
    """Check that no example is missing, pin the table's version, and say what the index covers."""
    expected = {key: row.content_sha256 for key, row in manifest.items() if key not in quarantined}
    table.seal(expected)
    seal = table.seal_record()
    dataset_version_id, config = pinned.dataset.dataset_version_id, plan.config()
    if seal is None:
        lost = index_id(checkpoint.checkpoint_id, dataset_version_id, config)
        raise StoreError(
            f"Index {lost} lost its seal while it was built.", "Run gradtrail index again, in one process only."
        )
    coverage = Coverage(
        covered_parameters=plan.covered_parameters,
        total_parameters=plan.total_parameters,
        uncovered=plan.uncovered,
        indexed_examples=len(expected),
        total_examples=len(manifest),
        quarantined=quarantined,
    )
    return Index(
        checkpoint.checkpoint_id, dataset_version_id, config, coverage, table.uri, seal.version, seal.rows_sha256
    )


def _missing_examples(
    training_data: TrainingData, manifest: dict[str, ManifestRow], present: dict[str, str], shard: Shard
) -> Iterator[Example]:
    for position, (example_id, row) in enumerate(manifest.items()):
        if example_id not in present and shard.holds(position):
            example = checked_example(training_data[position], position)
            yield refuse_drift(example, example_id, row.content_sha256)


def _as_stored(rows: Iterator[FeatureRows], plan: FeaturePlan) -> Iterator[FeatureRows]:
    for batch in rows:
        yield replace(batch, vectors=stored_vectors(batch.vectors, plan, plan.stored_weighting))


def _append(
    appending: Appending, manifest: dict[str, ManifestRow], attribute_names: Sequence[str], rows: FeatureRows
) -> int:
    recorded = [manifest[example_id] for example_id in rows.example_ids]
    return appending.add(
        example_ids=rows.example_ids,
        content_sha256=[row.content_sha256 for row in recorded],
        vectors=rows.vectors.cpu().numpy(),
        losses=rows.losses.cpu().numpy(),
        squared_norms=rows.squared_norms.cpu().numpy(),
        attributes={name: [row.attributes.get(name, "") for row in recorded] for name in attribute_names},
    )
