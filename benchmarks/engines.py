"""What is timed in this environment: the ceiling, a training step, and gradtrail from examples to a LanceDB table."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from workloads import Model, Workload

from gradtrail.attribution.adapters.base import Batch, ModelAdapter
from gradtrail.attribution.features.plan import FeaturePlan, FeatureSettings, plan_features
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.gradients.capture import iterate_features
from gradtrail.attribution.gradients.shards import Shard
from gradtrail.attribution.layers.forward_overrides import fast_affine_layers, use_faster_products
from gradtrail.nouns import Example
from gradtrail.storage.files.writing_behind import write_behind
from gradtrail.storage.gradients.appending import COMMIT_BYTES, Appending
from gradtrail.storage.gradients.store import GradientStore, IndexTable

GROUP_DIMENSION = 256
Engine = Callable[[], None]


class WorkloadAdapter(ModelAdapter):
    """A workload's model and loss as gradtrail reads them."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        inputs, targets = workload.data()
        self.input_dtype, self.target_dtype = inputs.dtype, targets.dtype  # type: ignore[misc]  # per workload
        self._examples = [
            Example(f"example-{number:06d}", one, target, {"source": f"source-{number % 7}"})
            for number, (one, target) in enumerate(zip(inputs, targets, strict=True))
        ]

    def build_model(self) -> nn.Module:
        return self._workload.build()

    def training_data(self) -> list[Example]:
        return self._examples

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self._workload.losses(outputs, batch.targets)

    def emitted(self, outputs: Tensor, batch: Batch) -> list[str]:  # noqa: ARG002 (the interface)
        return [str(number) for number in outputs.flatten(1).argmax(1).tolist()]


def ceiling(workload: Workload, *, faster: bool = False) -> Engine:
    """Forward, and backward to the first layer's output with frozen weights: no engine on hooks can do less.

    `faster` lets linear layers multiply as gradtrail does.
    """
    model, batches = _prepared(workload)
    model.requires_grad_(False)
    if faster:
        use_faster_products(fast_affine_layers(model, "cpu"), ExitStack())

    def run() -> None:
        for inputs, targets in batches:
            embedded = model.embed(inputs).requires_grad_()
            loss = workload.losses(model.continue_from(embedded), targets).sum()
            torch.autograd.grad(loss, embedded)

    return run


def training_step(workload: Workload) -> Engine:
    """Forward, backward to every weight, and an AdamW step."""
    model, batches = _prepared(workload)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def run() -> None:
        for inputs, targets in batches:
            optimiser.zero_grad()
            workload.losses(model(inputs), targets).sum().backward()
            optimiser.step()

    return run


def gradtrail_features(workload: Workload) -> Engine:
    """Every example's projected gradients, held in memory."""
    adapter, model, plan = _planned(workload)

    def run() -> None:
        rows = iterate_features(adapter, model, adapter.training_data(), plan, batch_size=workload.batch_size)
        held = [batch.vectors for batch in rows]
        assert sum(map(len, held)) == workload.examples

    return run


def gradtrail_index(workload: Workload, exclude: Sequence[str] = (), *, seal: bool = False) -> Engine:
    """Every example's projected gradients, written to a LanceDB table in a fresh folder.

    With `seal`, all that `gradtrail index` does beside: each example's content is digested and compared with the
    manifest, and the table is read back, checked and sealed.
    """
    adapter, model, plan = _planned(workload, exclude)
    digests = {example.example_id: example.content_sha256 for example in adapter.training_data()}

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            examples = _checked(adapter.training_data(), digests) if seal else adapter.training_data()
            rows = iterate_features(adapter, model, examples, plan, batch_size=workload.batch_size)
            table = _table(folder, plan)
            _write(table, rows, plan, workload, digests)
            if seal:
                table.seal(digests)

    return run


def gradtrail_part(workload: Workload, shard: Shard) -> Callable[[str], int]:
    """A shard of the examples, written to the LanceDB table in a folder, which other shards may write to as well."""
    adapter, model, plan = _planned(workload)
    digests = {example.example_id: example.content_sha256 for example in adapter.training_data()}

    def run(folder: str) -> int:
        data = adapter.training_data()
        rows = iterate_features(adapter, model, data, plan, batch_size=workload.batch_size, shard=shard)
        return _write(_table(folder, plan), rows, plan, workload, digests)

    return run


def _table(folder: str, plan: FeaturePlan) -> IndexTable:
    return GradientStore(folder).open_index(
        "0" * 64,
        dimension=plan.dimension,
        group_count=len(plan.groups),
        attribute_names=["source"],
        config=plan.config(),
    )


def _write(
    table: IndexTable, rows: Iterator[GradientBatch], plan: FeaturePlan, workload: Workload, digests: Mapping[str, str]
) -> int:
    ahead = max(1, COMMIT_BYTES // (4 * plan.dimension * workload.batch_size))
    with Appending(table) as appending:
        for _ in write_behind(rows, lambda batch: appending.add(**_columns(batch, digests)), ahead=ahead):
            pass
    return appending.written


def _planned(workload: Workload, exclude: Sequence[str] = ()) -> tuple[WorkloadAdapter, Model, FeaturePlan]:
    model = workload.build()
    settings = FeatureSettings(group_dimension=GROUP_DIMENSION, exclude=tuple(exclude))
    return WorkloadAdapter(workload), model, plan_features(model, settings)


def _checked(examples: Sequence[Example], digests: Mapping[str, str]) -> Iterator[Example]:
    for example in examples:
        assert example.content_sha256 == digests[example.example_id]
        yield example


def norms_and_embeddings(model: Model) -> list[str]:
    """Names of the layers that peers leave out: all but linear layers and convolutions."""
    covered = (nn.Linear, nn.Conv2d)
    return [name for name, layer in model.named_modules() if not isinstance(layer, covered) and layer._parameters]


def _columns(rows: GradientBatch, digests: Mapping[str, str]) -> dict[str, Any]:
    return {
        "example_ids": rows.example_ids,
        "content_sha256": [digests[example_id] for example_id in rows.example_ids],
        "vectors": rows.vectors.numpy(),
        "losses": rows.losses.numpy(),
        "squared_norms": rows.squared_norms.numpy(),
        "attributes": rows.attributes,
    }


def _prepared(workload: Workload) -> tuple[Model, list[tuple[Tensor, Tensor]]]:
    inputs, targets = workload.data()
    size = workload.batch_size
    return workload.build(), list(zip(inputs.split(size), targets.split(size), strict=True))
