"""One pass over the training data: what an index lacks is measured and stored, then the index is sealed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gradtrail.attribution.adapters.base import ModelAdapter, TrainingData
from gradtrail.attribution.adapters.deciding import library_versions
from gradtrail.attribution.adapters.faults import is_out_of_memory
from gradtrail.attribution.features.health import gradient_health
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.features.weights import stored_vectors
from gradtrail.attribution.gradients.capture import iterate_features
from gradtrail.attribution.gradients.checks import check_capture, check_determinism
from gradtrail.attribution.gradients.memory import MOST_EXAMPLES
from gradtrail.attribution.gradients.precision import rounding_of_gradients
from gradtrail.attribution.gradients.shards import Shard
from gradtrail.errors import DataError, StoreError
from gradtrail.lineage.read import queries
from gradtrail.lineage.read.measuring_adapters import is_measured_by
from gradtrail.nouns import FROZEN, Checkpoint, Coverage, Example, Index, ManifestRow, index_id
from gradtrail.storage.files.writing_behind import write_behind
from gradtrail.storage.gradients.appending import COMMIT_BYTES, Appending
from gradtrail.storage.gradients.store import IndexTable
from gradtrail.storage.models.manifests import read_manifest
from gradtrail.tasks.core.datasets import checked_example, refuse_drift
from gradtrail.tasks.core.ledger_nouns import manifest_sha256
from gradtrail.tasks.core.models import PinnedModel, pinned_model
from gradtrail.tasks.core.progress import ProgressBar, progress_bar, say
from gradtrail.tasks.core.weightings import found_weighting
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.eigenbases import eigen_plan, kept_eigen_plan
from gradtrail.tasks.index.estimates import PassEstimate, estimate_pass
from gradtrail.tasks.index.options import IndexOptions
from gradtrail.tasks.index.worker_processes import run_in_processes

LARGEST_BATCH = MOST_EXAMPLES
DETERMINISM_BATCH = 8
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class PlannedIndex:
    """An index before its pass: of which model and checkpoint, and how each group is stored.

    `measured_by` is part of its id; None continues an index of an older gradtrail, which the same adapter measured.
    """

    workspace: Workspace
    pinned: PinnedModel
    checkpoint: Checkpoint
    options: IndexOptions
    plan: FeaturePlan
    measured_by: Mapping[str, str] | None

    @property
    def index_id(self) -> str:
        """What the index is called, before it exists: a digest of all that determines its rows."""
        dataset_version_id = self.pinned.dataset.dataset_version_id
        return index_id(self.checkpoint.checkpoint_id, dataset_version_id, self.plan.config(), self.measured_by)


def plan_index(workspace: Workspace, model_version_id: str, checkpoint_id: str, options: IndexOptions) -> PlannedIndex:
    """Decide what the pass stores; `eigen` measures the Kronecker factors for this.

    Raises:
        ModelError: if nothing of the model can be measured, or the adapter is not as it was taken in.
        UsageError: if the weighting is of other groups.
    """
    pinned = pinned_model(workspace, model_version_id)
    pinned.require_measuring(pinned.model_version.measured_by)
    checkpoint = next(each for each in pinned.checkpoints if each.checkpoint_id == checkpoint_id)
    plan = options.plan(pinned, found_weighting(workspace, model_version_id, options.weighting or None))
    eigen = options.projection == "eigen"
    before: FeaturePlan | None = plan
    if eigen:
        before = kept_eigen_plan(workspace, pinned, checkpoint, plan, options.factors, None)
    if before is not None:
        continued = PlannedIndex(workspace, pinned, checkpoint, options, before, None)
        if _is_of_this_adapter(continued):
            return continued
    if eigen:
        # Factors take a pass over the data: what cannot be measured is told before.
        few = _drawn(pinned.training_data, DETERMINISM_BATCH)
        _checked_capture(pinned.adapter, pinned.load(checkpoint).to(options.device), few, plan, options.device)
        plan = eigen_plan(workspace, pinned, checkpoint, plan, options.factors, options.device)
    return PlannedIndex(workspace, pinned, checkpoint, options, plan, pinned.decided_by)


def _is_of_this_adapter(planned: PlannedIndex) -> bool:
    """Whether the ledger has an index without its adapter, and tells that it was the one of this model version."""
    with planned.workspace.ledger().read() as connection:
        recorded = queries.index(connection, planned.index_id)
        version = planned.pinned.model_version
        return recorded is not None and is_measured_by(connection, recorded, version) is True


@dataclass(frozen=True)
class PassCounts:
    """Rows that a pass wrote, those that it found there, and the examples without a finite gradient, each with why."""

    written: int
    resumed: int
    quarantined: dict[str, str]


class IndexPass:
    """The pass that fills the table of one index. Rows are keyed by example id, so that a killed pass is resumed."""

    def __init__(self, planned: PlannedIndex) -> None:
        self._planned = planned
        self._shard = Shard.of_text(planned.options.shard)
        self._manifest, self._attribute_names = _manifest(planned.workspace, planned.pinned)
        self._training_data = _training_data(planned.pinned, len(self._manifest))
        self._table = _open_table(planned, self._attribute_names)
        self._versions: dict[str, str] = {}
        self._checks: dict[str, float] | None = None

    def measure(self) -> PassCounts:
        """Measure what is missing of the shard, by several processes if the options say so.

        Raises:
            ModelError: if the model's losses are random or coupled.
            DataError: if an example is not what the dataset version recorded.
            UsageError: if the budget is too small for one example.
            WorkerLostError: if one of several processes was killed.
        """
        planned, options = self._planned, self._planned.options
        model = planned.pinned.load(planned.checkpoint).to(options.device)
        self._versions = library_versions(planned.pinned.adapter, model)
        estimate = self._checked_estimate(model)
        present = self._table.present()
        resumed, quarantined = len(present), dict[str, str]()
        missing = sum(name not in present and self._shard.holds(place) for place, name in enumerate(self._manifest))
        if missing:
            say(estimate.sentence(missing, options.workers))
        with (
            progress_bar("measuring gradients", len(self._manifest)) as bar,
            Appending(self._table, commit_bytes=COMMIT_BYTES) as appending,
        ):
            bar.advance(resumed)
            if options.workers > 1 and missing:
                self._measure_by_workers(bar)
                present = self._table.present()
            # What workers have left: nothing, or examples to quarantine.
            rows = iterate_features(
                planned.pinned.adapter,
                model,
                self._missing(present),
                planned.plan,
                batch_size=estimate.batch_size,
                device=options.device,
                on_non_finite=quarantined.__setitem__,
            )
            ahead = max(1, COMMIT_BYTES // (4 * planned.plan.dimension * estimate.batch_size))
            add = partial(self._append, appending)
            for batch, _ in write_behind(self._as_stored(rows), add, ahead=ahead):
                bar.advance(len(batch.example_ids))
        return PassCounts(len(present) - resumed + appending.written, resumed, quarantined)

    def seal(self, quarantined: dict[str, str]) -> Index:
        """Check that no example is missing, pin the table's version, and say what the index covers.

        Raises:
            StoreError: if an example is missing, or another process took the seal away.
        """
        planned = self._planned
        expected = {key: row.content_sha256 for key, row in self._manifest.items() if key not in quarantined}
        self._table.seal(expected)
        seal = self._table.seal_record()
        if seal is None:
            raise StoreError(
                f"Index {planned.index_id} lost its seal while it was built.",
                "Run gradtrail index again, in one process only.",
            )
        coverage = Coverage(
            covered_parameters=planned.plan.covered_parameters,
            total_parameters=planned.plan.total_parameters,
            uncovered=(*planned.plan.uncovered, *(name + FROZEN for name in planned.plan.frozen)),
            indexed_examples=len(expected),
            total_examples=len(self._manifest),
            quarantined=quarantined,
        )
        return Index(
            planned.checkpoint.checkpoint_id,
            planned.pinned.dataset.dataset_version_id,
            planned.plan.config(),
            coverage,
            self._table.uri,
            seal.version,
            seal.rows_sha256,
            checks=self._checks,
            **self._measured(),
        )

    def _measured(self) -> dict[str, Any]:
        """What measured the rows, and with which libraries; nothing for an index that is continued without that."""
        planned, version = self._planned, self._planned.pinned.model_version
        if planned.measured_by is None:
            return {}
        return {
            "adapter": version.adapter,
            "adapter_sha256": version.adapter_sha256,
            "measured_by": planned.measured_by,
            "measured_with": self._versions,
        }

    def warnings(self) -> tuple[str, ...]:
        """What of the model or the data has no gradient, from the rows that are stored."""
        norms = (torch.tensor(batch.squared_norms) for batch in self._table.stream(columns=["squared_norms"]))
        return gradient_health(norms, self._planned.plan).warnings()

    def _checked_estimate(self, model: torch.nn.Module) -> PassEstimate:
        """What the pass will need, once examples drawn from all have shown that it can be trusted.

        Gradients are compared in a batch of the size that is used, since what couples examples may show only there.
        """
        planned, options, data = self._planned, self._planned.options, self._training_data
        adapter, plan, device = planned.pinned.adapter, planned.plan, options.device
        few = _drawn(data, DETERMINISM_BATCH)
        furthest = check_determinism(adapter, model, few, device)
        # Once with few, which is soon: what a model cannot be measured for shows here, before a batch of full size.
        _checked_capture(adapter, model, few, plan, device)
        estimate = estimate_pass(
            adapter,
            model,
            [checked_example(data[place], place) for place in range(min(DETERMINISM_BATCH, len(data)))],
            plan,
            rows=len(data),
            dtype=options.dtype,
            memory_budget=options.memory_budget // options.workers,
            largest_batch=LARGEST_BATCH,
            device=device,
        )
        whole, error = _checked_capture(adapter, model, _drawn(data, estimate.batch_size), plan, device)
        rounding = rounding_of_gradients(adapter, model, few, plan, device)
        self._checks = {"losses": furthest, "gradients": error}
        if rounding is not None:
            self._checks["rounding"] = rounding
        say(_checked(len(few), furthest, len(whole), error, rounding))
        return estimate

    def _measure_by_workers(self, bar: ProgressBar) -> None:
        """Let several processes fill the table; what they have stored when one of them fails stays."""
        planned, options = self._planned, self._planned.options
        threads = max(1, torch.get_num_threads() // options.workers)
        seen = self._table.count()

        def show() -> None:
            nonlocal seen
            before, seen = seen, self._table.count()
            bar.advance(seen - before)

        of_what = (planned.workspace, planned.pinned.model_version.model_version_id, planned.checkpoint.checkpoint_id)
        own = [options.for_worker(number) for number in range(1, options.workers + 1)]
        run_in_processes(
            _measure_part, [(*of_what, each, threads) for each in own], meanwhile=show, every=_LOOK_SECONDS
        )

    def _missing(self, present: dict[str, str]) -> Iterator[Example]:
        for position, (example_id, row) in enumerate(self._manifest.items()):
            if example_id not in present and self._shard.holds(position):
                example = checked_example(self._training_data[position], position)
                yield refuse_drift(example, example_id, row.content_sha256)

    def _as_stored(self, rows: Iterator[GradientBatch]) -> Iterator[GradientBatch]:
        plan = self._planned.plan
        for batch in rows:
            yield replace(batch, vectors=stored_vectors(batch.vectors, plan, plan.stored_weighting))

    def _append(self, appending: Appending, rows: GradientBatch) -> int:
        recorded = [self._manifest[example_id] for example_id in rows.example_ids]
        return appending.add(
            example_ids=rows.example_ids,
            content_sha256=[row.content_sha256 for row in recorded],
            vectors=rows.vectors.cpu().numpy(),
            losses=rows.losses.cpu().numpy(),
            squared_norms=rows.squared_norms.cpu().numpy(),
            attributes={name: [row.attributes.get(name, "") for row in recorded] for name in self._attribute_names},
        )


def _drawn(data: TrainingData, count: int) -> list[Example]:
    """So many examples, drawn from all, the same each time."""
    places = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()[:count]
    return [checked_example(data[place], place) for place in places]


def _checked_capture(
    adapter: ModelAdapter, model: torch.nn.Module, examples: list[Example], plan: FeaturePlan, device: str
) -> tuple[list[Example], float]:
    """As many of the examples as fit into memory together, and the largest error of their gradients."""
    while True:
        try:
            return examples, check_capture(adapter, model, examples, plan, device)
        except RuntimeError as fault:
            if not is_out_of_memory(fault) or len(examples) == 1:
                raise
        examples = examples[: len(examples) // 2]


def _checked(few: int, furthest: float, whole: int, error: float, rounding: float | None) -> str:
    """What the checks before a pass have found, for people."""
    half = "" if rounding is None else f"; in float32 they would be {rounding:.2g} away (half precision)"
    return (
        f"Checked on examples drawn from all: losses of {few} are the same alone and in a batch (to {furthest:.1g}), "
        f"gradients in a batch of {whole} are those of autograd (to {error:.1g}){half}."
    )


def _measure_part(
    workspace: Workspace, model_version_id: str, checkpoint_id: str, options: IndexOptions, threads: int
) -> None:
    """What one worker does."""
    torch.set_num_threads(threads)
    IndexPass(plan_index(workspace, model_version_id, checkpoint_id, options)).measure()


def _manifest(workspace: Workspace, pinned: PinnedModel) -> tuple[dict[str, ManifestRow], list[str]]:
    """The recorded examples by id, in order, and the names of their attributes that are not personal."""
    with workspace.ledger().read() as connection:
        digest = manifest_sha256(connection, pinned.dataset.dataset_version_id)
        personal = queries.personal_names(connection, pinned.dataset.dataset_version_id)
    manifest = {row.example_id: row for row in read_manifest(Path(pinned.dataset.manifest_uri), expected_sha256=digest)}
    names = {name for row in manifest.values() for name in row.attributes}
    return manifest, sorted(names - personal.union(workspace.personal_attributes))


def _training_data(pinned: PinnedModel, recorded: int) -> TrainingData:
    training_data = pinned.training_data
    if len(training_data) != recorded:
        raise DataError(
            f"The adapter {pinned.model_version.adapter} returns {len(training_data)} training examples; the dataset "
            f"version has {recorded}.",
            "Let it return the data that the model was registered with, or register the model again.",
        )
    return training_data


def _open_table(planned: PlannedIndex, attribute_names: Sequence[str]) -> IndexTable:
    return planned.workspace.gradients().open_index(
        planned.index_id,
        dimension=planned.plan.dimension,
        group_count=len(planned.plan.groups),
        attribute_names=list(attribute_names),
        config=planned.plan.config(),
        dtype=planned.options.dtype,
        group_dimensions=[group.dimension for group in planned.plan.groups],
    )
