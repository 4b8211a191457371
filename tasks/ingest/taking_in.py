"""Ingest: a registered model version becomes checkpoints, a dataset version and rows of the ledger."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from gradtrail.attribution.adapters.loading import load_adapter
from gradtrail.attribution.adapters.training_data import training_examples
from gradtrail.digests import sha256_file, sha256_json, short
from gradtrail.errors import CheckpointError, UntrustedCodeError, UsageError
from gradtrail.lineage.read import queries
from gradtrail.nouns import Checkpoint, DatasetVersion, ModelVersion
from gradtrail.storage.models.checkpoint_formats import detect_format
from gradtrail.storage.models.checkpoints import load_into, read_weights, to_safetensors, write_safetensors
from gradtrail.storage.models.code_executing import load_executing
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
from gradtrail.tasks.core.datasets import manifest_rows
from gradtrail.tasks.core.ledger_nouns import manifest_sha256
from gradtrail.tasks.core.workspace import Workspace

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".pt2", ".bin")


@dataclass(frozen=True)
class AdapterChoice:
    """Which adapter reads a model version: its reference and the source digest that is pinned from now on."""

    reference: str
    source_sha256: str


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
    return AdapterChoice(loaded.reference, loaded.source_sha256)


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
    build_model = load_adapter(
        adapter.reference,
        allowed=[adapter.reference],
        expected_sha256=adapter.source_sha256,
        search_path=Path(workspace.adapter_path),
    ).adapter.build_model
    workspace.checkpoints.mkdir(parents=True, exist_ok=True)
    stored = []
    for found in _listed_checkpoints(folder) or [_lone_checkpoint(folder, version)]:
        copy = folder.parent / f"{found.sha256}.safetensors"
        file_format = _copy_safely(found.path, copy, folder, allow_code_execution)
        load_into(build_model(), read_weights(copy), name=f"{version.model_version_id} at step {found.step}")
        weights_sha256 = sha256_file(copy)
        destination = copy.replace(workspace.checkpoints / f"{weights_sha256}.safetensors")
        stored.append(
            Checkpoint(
                checkpoint_id=found.sha256,
                step=found.step,
                learning_rate=found.learning_rate,
                format=file_format,
                source_uri=f"{version.source_uri}/{found.path.relative_to(folder).as_posix()}",
                weights_uri=str(destination),
                weights_sha256=weights_sha256,
                byte_size=found.path.stat().st_size,
            )
        )
    return stored


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
    ledger.record_dataset_version(dataset, manifest, workspace.personal_attributes)
    model_version = ModelVersion(
        name=version.name,
        version=version.version,
        run_id=version.run_id,
        dataset_version_id=dataset.dataset_version_id,
        adapter=adapter.reference,
        adapter_sha256=adapter.source_sha256,
        checkpoint_ids=tuple(checkpoint.checkpoint_id for checkpoint in checkpoints),
    )
    ledger.record_model_version(model_version, workspace.registry().run(version.run_id), checkpoints)
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


@dataclass(frozen=True)
class _Found:
    path: Path
    sha256: str
    step: int
    learning_rate: float | None


def _scratch(workspace: Workspace, version: RegisteredVersion) -> Path:
    return workspace.root / "scratch" / sha256_json(version.model_version_id)


def _listed_checkpoints(folder: Path) -> list[_Found]:
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
        found.append(_Found(path, sha256, entry["step"], entry["learning_rate"]))
    return found


def _lone_checkpoint(folder: Path, version: RegisteredVersion) -> _Found:
    files = sorted(path for path in folder.rglob("*") if path.suffix in WEIGHT_SUFFIXES and path.is_file())
    if len(files) != 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in files[:5]) or "none"
        raise CheckpointError(
            f"{version.model_version_id} should hold exactly one file of weights; found {len(files)}: {names}.",
            "Register one weights file, or several checkpoints through gradtrail.register.",
        )
    return _Found(files[0], sha256_file(files[0]), 0, None)


def _copy_safely(path: Path, copy: Path, folder: Path, allow_code_execution: bool) -> str:
    file_format = detect_format(path)
    if file_format in ("safetensors", "torch_state_dict"):
        to_safetensors(path, copy)
    elif allow_code_execution and file_format in ("pickle", "torch_export"):
        write_safetensors(load_executing(path, folder), copy)
    elif file_format in ("pickle", "torch_export"):
        raise UntrustedCodeError(
            f"{path.name} is a {file_format} file: loading it can execute code that it carries.",
            "Register safetensors or a state_dict instead; or, if you trust its author, ingest it once with "
            "--allow-code-execution, after which gradtrail uses its own safetensors copy.",
        )
    else:
        read_weights(path)
    return file_format
