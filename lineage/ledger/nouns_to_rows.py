"""From nouns to rows, one function a noun; an audit has a module of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from gradtrail.digests import sha256_json
from gradtrail.errors import DataError
from gradtrail.lineage.chain.rows import Rows, rows_from, rows_of
from gradtrail.lineage.schema.json_columns import as_json
from gradtrail.nouns import (
    Checkpoint,
    DatasetVersion,
    Fidelity,
    Index,
    ManifestRow,
    ModelVersion,
    Output,
    Run,
    Weighting,
)


def dataset_rows(
    dataset: DatasetVersion, manifest: Iterable[ManifestRow], personal_names: Collection[str] = ()
) -> tuple[Rows, Rows, Rows]:
    """Rows of dataset_version, of example, and of personal_attribute: the attributes that `personal_names` lists.

    Raises:
        DataError: also when the manifest has another number of examples than the dataset version says.
    """
    header = rows_from("dataset_version", [dataset])
    personal: list[tuple[str, str, str, str]] = []

    def without_personal() -> Iterator[ManifestRow]:
        for row in manifest:
            kept = {name: value for name, value in row.attributes.items() if name not in personal_names}
            for name in sorted(row.attributes.keys() - kept):
                personal.append((dataset.dataset_version_id, row.example_id, name, row.attributes[name]))
            yield row if len(kept) == len(row.attributes) else replace(row, attributes=kept)

    examples = rows_from("example", without_personal(), dataset_version_id=dataset.dataset_version_id)
    if examples.count != dataset.example_count:
        raise DataError(
            f"Dataset version {dataset.dataset_version_id} says {dataset.example_count} examples, "
            f"its manifest has {examples.count}.",
            "Read the manifest again from its file; it may be cut short.",
        )
    return header, examples, rows_of("personal_attribute", personal)


def model_version_rows(
    model_version: ModelVersion, run: Run, checkpoints: Sequence[Checkpoint]
) -> tuple[Rows, Rows, Rows, Rows]:
    """Rows of model_version, model_version_checkpoint, training_run and checkpoint.

    Raises:
        DataError: also when run or checkpoints are not those the model version names.
    """
    model_version_id = model_version.model_version_id
    given = tuple(checkpoint.checkpoint_id for checkpoint in checkpoints)
    if run.run_id != model_version.run_id or given != model_version.checkpoint_ids or not checkpoints:
        raise DataError(
            f"Model version {model_version_id} names run {model_version.run_id} and checkpoints "
            f"{list(model_version.checkpoint_ids)}, but was given run {run.run_id} and checkpoints {list(given)}.",
            "Hand over its own run and its checkpoints in order of steps, at least one.",
        )
    unique = {checkpoint.checkpoint_id: checkpoint for checkpoint in checkpoints}
    return (
        rows_from("model_version", [model_version]),
        rows_from("model_version_checkpoint", checkpoints, model_version_id=model_version_id),
        rows_from("training_run", [run]),
        rows_from("checkpoint", unique.values()),
    )


def index_rows(index: Index) -> Rows:
    """The row of an index."""
    with as_json("feature_config"):
        index_id = index.index_id
    return rows_from("gradient_index", [index], index_id=index_id)


def weighting_rows(weighting: Weighting) -> Rows:
    """The row of a weighting."""
    with as_json("group_weights"):
        weighting_id = weighting.weighting_id
    return rows_from("weighting", [weighting], weighting_id=weighting_id)


def fidelity_rows(fidelities: Sequence[Fidelity]) -> Rows:
    """One row a measurement."""
    with as_json("fidelity"):
        fidelity_ids = [fidelity.fidelity_id for fidelity in fidelities]
    return rows_from("fidelity", fidelities, each={"fidelity_id": fidelity_ids})


def output_rows(outputs: Sequence[Output]) -> Rows:
    """One row an output."""
    for output in outputs:
        if output.produced_at.tzinfo is None:
            raise DataError(
                f"Output {output.output_id} was produced at {output.produced_at}, which has no time zone.",
                "Give times with a time zone; UTC is best.",
            )
    return rows_from("output", outputs)


def quarantine_rows(source: str, record_id: str, cause: str) -> Rows:
    """The row of one refused record; its id is the digest of the three."""
    with as_json("quarantine"):
        quarantine_id = sha256_json({"source": source, "record_id": record_id, "cause": cause})
    return rows_of("quarantine", [(quarantine_id, source, record_id, cause)])
