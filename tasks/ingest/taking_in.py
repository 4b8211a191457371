"""Ingest: a registered model version becomes checkpoints, a dataset version and rows of the ledger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gradtrail.attribution.adapters.base import ModelAdapter
from gradtrail.attribution.adapters.faults import plain_faults
from gradtrail.attribution.adapters.loading import load_adapter
from gradtrail.attribution.adapters.training_data import training_examples
from gradtrail.digests import sha256_file, sha256_json, short
from gradtrail.errors import CheckpointError, UntrustedCodeError, UsageError
from gradtrail.lineage.read import queries
from gradtrail.nouns import Checkpoint, DatasetVersion, ModelVersion
from gradtrail.storage.models.checkpoint_formats import detect_format
from gradtrail.storage.models.checkpoints import WeightsFile, load_into, read_weights, write_safetensors
from gradtrail.storage.models.code_executing import load_executing
from gradtrail.storage.models.frozen_bases import base_metadata, refuse_other_adapter
from gradtrail.storage.models.manifests import read_manifest, write_manifest
from gradtrail.storage.models.registry import (
    ADAPTER_SHA256_TAG,
    ADAPTER_TAG,
    CHECKPOINT_LIST,
    CHECKPOINT_TAG,
    DATASET_TAG,
    MANIFEST_FILE,
    RegisteredVersion,
)
from gradtrail.storage.models.weight_folders import FoundWeights, find_weights
from gradtrail.tasks.core.datasets import manifest_rows
from gradtrail.tasks.core.ledger_nouns import manifest_sha256
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.ingest.adapters_alike import (
    is_peft,
    outputs_of_first,
    refuse_other_outputs,
    refuse_unlike_merged,
)


@dataclass(frozen=True)
class AdapterChoice:
    """Which adapter reads a model version: its reference and the source digest that is pinned from now on.

    `decided_by` are the digests of what decides its numbers.
    """

    reference: str
    source_sha256: str
    decided_by: Mapping[str, str]


def resolve_version(workspace: Workspace, reference: str) -> RegisteredVersion:
    """Resolve an alias once; everything after names the number."""
    return workspace.registry().resolve(reference)


def already_ingested(workspace: Workspace, version: RegisteredVersion) -> bool:
    """Whether the ledger has this model version, and its tags say so: they are the last that an ingest writes."""
    ledger = workspace.ledger()
    if not ledger.paths.database.is_file():
        return False
    with ledger.read() as connection:
        recorded = queries.model_version(connection, version.model_version_id)
    return recorded is not None and version.tags.get(CHECKPOINT_TAG) == recorded.checkpoint_ids[-1]


def choose_adapter(workspace: Workspace, version: RegisteredVersion, given: str) -> AdapterChoice:
    """The adapter given on the command line, which thereby is allowed, or the one in the version's tags.

    Raises:
        UsageError: if there is neither.
        UntrustedCodeError: if the tagged adapter is not allowed, or its source is not the registered one.
    """
    tagged = version.tags.get(ADAPTER_TAG, "")
    if not (given or tagged):
        raise UsageError(
            f"The model version {version.model_version_id} does not say which adapter reads it.",
            "Name one: gradtrail ingest NAME@alias --adapter package.module:Class.",
        )
    loaded = load_adapter(
        given or tagged,
        allowed=(*workspace.allowed_adapters, *([given] if given else [])),
        expected_sha256=None if given else version.tags.get(ADAPTER_SHA256_TAG),
        search_path=Path(workspace.adapter_path),
    )
    return AdapterChoice(loaded.reference, loaded.source_sha256, loaded.decided_by)


def fetch_files(workspace: Workspace, version: RegisteredVersion) -> str:
    """Copy the version's files into a scratch folder of its own and return that folder."""
    scratch = _scratch(workspace, version)
    shutil.rmtree(scratch, ignore_errors=True)
    return str(workspace.registry().fetch(version, scratch))


def store_checkpoints(
    workspace: Workspace,
    version: RegisteredVersion,
    files: str,
    adapter: AdapterChoice,
    allow_code_execution: bool,
) -> list[Checkpoint]:
    """Check every checkpoint against the adapter's architecture and keep it as safetensors under its digest.

    Raises:
        CheckpointError: if weights are damaged, not finite, of another architecture, or absent.
        UntrustedCodeError: if only a format that can execute code is there and nobody allowed it.
    """
    folder = Path(files)
    loaded = load_adapter(
        adapter.reference,
        allowed=[adapter.reference],
        expected_sha256=adapter.source_sha256,
        search_path=Path(workspace.adapter_path),
    ).adapter
    workspace.checkpoints.mkdir(parents=True, exist_ok=True)
    label, location = version.model_version_id, workspace.registry().location(version)
    stored: list[Checkpoint] = []
    for found in _listed_checkpoints(folder) or find_weights(folder, label=label):
        read = _read_safely(found, folder, allow_code_execution)
        step = next((each for each in (found.step, read.step) if each is not None), 0)
        copy = folder.parent / f"{len(stored)}.safetensors"
        base = _checked_copy(loaded, found, read, copy, name=f"{label} at step {step}")
        weights_sha256 = sha256_file(copy)
        destination = copy.replace(workspace.checkpoints / f"{weights_sha256}.safetensors")
        stored.append(
            Checkpoint(
                # The file of an adapter alone does not say which base it is for, and that decides every number.
                checkpoint_id=sha256_json([found.sha256, base]) if base != read.base_sha256 else found.sha256,
                step=step,
                learning_rate=found.learning_rate,
                format=read.format,
                source_uri=f"{location}/{found.path.relative_to(folder).as_posix()}",
                weights_uri=str(destination),
                weights_sha256=weights_sha256,
                byte_size=found.byte_size,
            )
        )
    return stored


def _checked_copy(adapter: ModelAdapter, found: FoundWeights, read: WeightsFile, copy: Path, *, name: str) -> str:
    """Write the copy that is read from now on, once the weights fit; returns the digest of the base it leaves out."""
    with plain_faults():
        model = adapter.build_model()
    fitted = load_into(
        model,
        read.tensors,
        name=name,
        within_larger=read.within_larger,
        expected_base_sha256=read.base_sha256,
    )
    if found.adapter_config is not None:
        refuse_other_adapter(model, found.adapter_config, name=name)
    write_safetensors(fitted.tensors, copy, base_metadata(fitted.base_sha256))
    if is_peft(model):
        again = adapter.build_model()
        load_into(again, read_weights(copy), name=name, expected_base_sha256=fitted.base_sha256)
        data = training_examples(adapter)
        given, reloaded = (outputs_of_first(adapter, each, data) for each in (model, again))
        refuse_other_outputs(given, reloaded, model, name=name, how="loaded again")
        refuse_unlike_merged(adapter, again, data, name=name)
    return fitted.base_sha256


def store_manifest(
    workspace: Workspace, version: RegisteredVersion, files: str, adapter: AdapterChoice
) -> DatasetVersion:
    """Keep the registered manifest under its digest, or write one from the adapter's training data.

    Raises:
        DataError: if the registered manifest is not the one in the version's tags.
    """
    registered = Path(files) / MANIFEST_FILE
    if registered.is_file():
        rows = read_manifest(registered, expected_sha256=version.tags.get(DATASET_TAG, ""))
    else:
        loaded = load_adapter(
            adapter.reference,
            allowed=[adapter.reference],
            expected_sha256=adapter.source_sha256,
            search_path=Path(workspace.adapter_path),
        )
        rows = manifest_rows(training_examples(loaded.adapter))
    manifest = write_manifest(rows, Path(files).parent / "manifest")
    manifest = _keep_manifest(workspace, manifest)
    with manifest.open("rb") as stream:
        count = sum(1 for _ in stream)
    return DatasetVersion(manifest.stem, f"{version.name} training data", count, str(manifest))


def record_model_version(
    workspace: Workspace,
    version: RegisteredVersion,
    checkpoints: list[Checkpoint],
    dataset: DatasetVersion,
    adapter: AdapterChoice,
) -> str:
    """Write dataset version, checkpoints, run and model version to the ledger; returns the model version's id."""
    ledger = workspace.ledger()
    manifest = read_manifest(Path(dataset.manifest_uri))
    run = workspace.registry().training_run(version)
    ledger.record_dataset_version(dataset, manifest, workspace.personal_attributes)
    model_version = ModelVersion(
        name=version.name,
        version=version.version,
        run_id=run.run_id,
        dataset_version_id=dataset.dataset_version_id,
        adapter=adapter.reference,
        adapter_sha256=adapter.source_sha256,
        checkpoint_ids=tuple(checkpoint.checkpoint_id for checkpoint in checkpoints),
        measured_by=adapter.decided_by,
    )
    ledger.record_model_version(model_version, run, checkpoints)
    return model_version.model_version_id


def tag_version(
    workspace: Workspace,
    version: RegisteredVersion,
    checkpoints: list[Checkpoint],
    dataset: DatasetVersion,
    adapter: AdapterChoice,
) -> None:
    """Say in MLflow, on version and run, what the ledger has recorded; then drop the scratch copy."""
    workspace.registry().tag_version(
        version,
        {
            ADAPTER_TAG: adapter.reference,
            ADAPTER_SHA256_TAG: adapter.source_sha256,
            DATASET_TAG: dataset.dataset_version_id,
            CHECKPOINT_TAG: checkpoints[-1].checkpoint_id,
        },
    )
    shutil.rmtree(_scratch(workspace, version), ignore_errors=True)


def _keep_manifest(workspace: Workspace, manifest: Path) -> Path:
    """Keep a manifest that was just written, unless something of it was erased here before: then that one stays."""
    kept = workspace.manifests / manifest.name
    if kept.is_file() and workspace.ledger().paths.database.is_file():
        with workspace.ledger().read() as connection:
            if manifest_sha256(connection, manifest.stem) != manifest.stem:
                manifest.unlink()
                return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    return manifest.replace(kept)


def _scratch(workspace: Workspace, version: RegisteredVersion) -> Path:
    return workspace.root / "scratch" / sha256_json(version.model_version_id)


def _listed_checkpoints(folder: Path) -> list[FoundWeights]:
    listing = folder / CHECKPOINT_LIST
    if not listing.is_file():
        return []
    found = []
    for entry in json.loads(listing.read_bytes())["checkpoints"]:
        path = (folder / entry["file"]).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            raise CheckpointError(
                f"{listing} lists {entry['file']!r}, which is not among the version's files.",
                "Register the model again with gradtrail.register.",
            )
        sha256 = sha256_file(path)
        if sha256 != entry["sha256"]:
            raise CheckpointError(
                f"The checkpoint {path.name} is damaged: its sha256 is {short(sha256)}, "
                f"but {short(entry['sha256'])} was registered.",
                "Restore the file in MLflow's artifact store, or register the model again.",
            )
        found.append(FoundWeights(path, step=entry["step"], learning_rate=entry["learning_rate"]))
    return found


def _read_safely(found: FoundWeights, folder: Path, allow_code_execution: bool) -> WeightsFile:
    try:
        return found.read()
    except UntrustedCodeError as refusal:
        if allow_code_execution and not found.shards:
            return WeightsFile(load_executing(found.path, folder), detect_format(found.path))
        raise UntrustedCodeError(
            refusal.what,
            "Register safetensors or a state_dict instead; or, if you trust its author, ingest it once with "
            "--allow-code-execution, after which gradtrail uses its own safetensors copy.",
        ) from refusal
