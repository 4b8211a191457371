"""The eigenbases of indexes with eigen projection: fitted once, kept as files under their digest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from gradtrail.attribution.curvature.blocks import default_curvature_kind
from gradtrail.attribution.curvature.kronecker import fit_eigen_basis
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.projection.eigen import EIGEN_VERSION, EigenBasis
from gradtrail.digests import canonical_json, sha256_json
from gradtrail.errors import GradtrailError, StoreError
from gradtrail.lineage.read import queries
from gradtrail.lineage.read.measuring_adapters import Connection
from gradtrail.lineage.read.pinned_files import recorded_before_pinning
from gradtrail.nouns import Checkpoint, Example
from gradtrail.storage.models.checkpoints import write_safetensors
from gradtrail.tasks.core.kept_files import read_kept, write_kept
from gradtrail.tasks.core.models import PinnedModel
from gradtrail.tasks.core.progress import progress_bar
from gradtrail.tasks.core.workspace import Workspace


def eigen_plan(
    workspace: Workspace, pinned: PinnedModel, checkpoint: Checkpoint, plan: FeaturePlan, kind: str, device: str
) -> FeaturePlan:
    """`plan` in the eigenbasis of a checkpoint's Kronecker factors, fitted in one pass or read from an earlier one.

    An empty `kind` picks the default curvature of the adapter. Examples without a finite loss and gradient are left
    out of the factors; the index quarantines them.
    """
    kept = kept_eigen_plan(workspace, pinned, checkpoint, plan, kind, pinned.decided_by)
    if kept is not None:
        return kept
    kind = kind or default_curvature_kind(pinned.adapter)
    basis = _fit(pinned, checkpoint, plan, kind, device)
    workspace.curvatures.mkdir(parents=True, exist_ok=True)
    write_safetensors(basis.to_tensors(), _path(workspace, basis.digest))
    note = _note(workspace, pinned, checkpoint, plan, kind, pinned.decided_by)
    content = canonical_json({"digest": basis.digest})
    write_kept(workspace, note, lambda beside: beside.write_bytes(content))
    return dataclasses.replace(plan, basis=basis)


def kept_eigen_plan(
    workspace: Workspace,
    pinned: PinnedModel,
    checkpoint: Checkpoint,
    plan: FeaturePlan,
    kind: str,
    measured_by: Mapping[str, str] | None,
) -> FeaturePlan | None:
    """The same where the basis is kept, else None; one that an older gradtrail kept does not say what measured it."""
    kind = kind or default_curvature_kind(pinned.adapter)
    note = _note(workspace, pinned, checkpoint, plan, kind, measured_by)
    said = read_kept(workspace, note, partial(_has_older_index, checkpoint_id=checkpoint.checkpoint_id))
    kept = _path(workspace, json.loads(said)["digest"]) if said is not None else None
    if kept is None or not kept.is_file():
        return None
    return dataclasses.replace(plan, basis=_read(kept, kind))


def stored_basis(workspace: Workspace, feature_config: Mapping[str, Any]) -> EigenBasis | None:
    """The basis an index was measured in; None for random projection.

    Raises:
        StoreError: if its file is gone or was changed.
    """
    projection = feature_config["projection"]
    if projection["kind"] != "eigen":
        return None
    return _read(_path(workspace, str(projection["digest"])), str(projection["factors"]))


def basis_problem(workspace: Workspace, feature_config: Mapping[str, Any]) -> str:
    """What is wrong with the kept basis of an index; empty where nothing is, or the projection is random."""
    try:
        stored_basis(workspace, feature_config)
    except (GradtrailError, SafetensorError, OSError, ValueError) as error:
        return str(error)
    return ""


def _note(
    workspace: Workspace,
    pinned: PinnedModel,
    checkpoint: Checkpoint,
    plan: FeaturePlan,
    kind: str,
    measured_by: Mapping[str, str] | None,
) -> Path:
    """The file that says which basis was fitted: its name is the digest of all that decides it."""
    recipe = {
        "checkpoint": checkpoint.checkpoint_id,
        "dataset_version": pinned.dataset.dataset_version_id,
        "features": dataclasses.replace(plan, basis=None).config(),
        "factors": kind,
        "version": EIGEN_VERSION,
    }
    if measured_by is not None:
        recipe["adapter"] = dict(measured_by)
    return workspace.curvatures / f"basis-of-{sha256_json(recipe)}.json"


def _has_older_index(connection: Connection, checkpoint_id: str) -> bool:
    """Whether a basis of this checkpoint may have been fitted before the ledger pinned what says which."""
    older = queries.indexes_of(connection, checkpoint_id)
    return any(recorded_before_pinning(connection, each.index_id) for each in older)


def _fit(pinned: PinnedModel, checkpoint: Checkpoint, plan: FeaturePlan, kind: str, device: str) -> EigenBasis:
    data = pinned.training_data
    unusable: dict[str, str] = {}
    with progress_bar("fitting Kronecker factors", len(data)) as bar:

        def examples() -> Iterator[Example]:
            for position in range(len(data)):
                yield data[position]
                bar.advance(1)

        return fit_eigen_basis(
            pinned.adapter,
            pinned.load(checkpoint).to(device),
            examples(),
            plan,
            kind=kind,
            device=device,
            on_non_finite=unusable.__setitem__,
        )


def _path(workspace: Workspace, digest: str) -> Path:
    return workspace.curvatures / f"basis-{digest}.safetensors"


def _read(path: Path, kind: str) -> EigenBasis:
    if not path.is_file():
        raise StoreError(
            f"The eigenbasis {path} of an index is gone, so that outputs cannot be measured as the index was.",
            "Restore the file from a backup, or run gradtrail index again with the options of that index.",
        )
    return EigenBasis.from_tensors(load_file(path), kind, path.stem.removeprefix("basis-"))
