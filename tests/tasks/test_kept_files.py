"""Kept files that decide scores are read only as they were made; verify names one that was changed or is unpinned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradtrail.attribution.methods.registry import settled
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.errors import StoreError
from gradtrail.lineage.read.pinned_files import kept_digests
from gradtrail.tasks.audit.preparing import fitted_needs, fitting_data
from gradtrail.tasks.core.kept_files import read_kept, write_kept
from gradtrail.tasks.core.models import pinned_model
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.govern.verifying import verify_workspace
from gradtrail.tasks.index.opened import method_indexes, open_index


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(home=str(tmp_path), tracking_uri="", artifact_root="", gradients_uri="", mlflow_url="")


def _never(_: object) -> bool:
    return False


def _keep(workspace: Workspace, name: str, content: bytes) -> Path:
    path = workspace.curvatures / name
    write_kept(workspace, path, lambda beside: beside.write_bytes(content))
    return path


def test_a_kept_file_is_read_as_it_was_made(workspace: Workspace) -> None:
    path = _keep(workspace, "one.safetensors", b"first")
    assert read_kept(workspace, path, _never) == b"first"
    assert [each.name for each in workspace.curvatures.iterdir()] == ["one.safetensors"]


def test_a_changed_kept_file_is_refused_with_a_remedy_that_works(workspace: Workspace) -> None:
    path = _keep(workspace, "one.safetensors", b"first")
    path.write_bytes(b"other")
    with pytest.raises(
        StoreError, match=r"one\.safetensors decides scores and is not as it was made.* Delete the file"
    ):
        read_kept(workspace, path, _never)
    path.unlink()
    assert read_kept(workspace, path, _never) is None
    _keep(workspace, "one.safetensors", b"anew")
    assert read_kept(workspace, path, _never) == b"anew"


def test_the_same_bytes_again_add_no_event(workspace: Workspace) -> None:
    for _ in range(2):
        _keep(workspace, "one.safetensors", b"first")
    with workspace.ledger().read() as connection:
        assert connection.execute("SELECT count(*) FROM pinned_file").fetchall() == [(1,)]
        assert kept_digests(connection).keys() == {"curvature/one.safetensors"}


def test_a_file_that_nothing_speaks_for_is_made_anew_unless_it_may_be_older(workspace: Workspace) -> None:
    _keep(workspace, "one.safetensors", b"first")
    path = workspace.curvatures / "two.safetensors"
    path.write_bytes(b"laid there")
    assert read_kept(workspace, path, _never) is None
    assert read_kept(workspace, path, lambda _: True) == b"laid there"


def test_a_write_that_fails_leaves_nothing(workspace: Workspace) -> None:
    def fails(beside: Path) -> None:
        beside.write_bytes(b"half")
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        write_kept(workspace, workspace.curvatures / "one.safetensors", fails)
    assert list(workspace.curvatures.iterdir()) == []


def test_fitted_curvature_that_was_rescaled_is_named_and_refused(indexed) -> None:
    workspace = indexed.workspace
    with workspace.ledger().read() as connection:
        [(version_id,)] = connection.execute("SELECT model_version_id FROM model_version").fetchall()
    pinned = pinned_model(workspace, version_id)
    spec = settled(MethodSpec("influence"), pinned.adapter)
    [index_id] = method_indexes(workspace, version_id, spec.method)
    opened = open_index(workspace, pinned, index_id)
    data = fitting_data(pinned, opened, spec, "cpu")
    fitted_needs(workspace, index_id, data, spec)
    [path] = workspace.curvatures.glob("*.safetensors")
    made = path.read_bytes()
    verified = verify_workspace(workspace)
    assert verified.problems == ()
    assert verified.checked["kept files"] == 1
    fitted_needs(workspace, index_id, data, spec)  # read back
    save_file({name: torch.mul(each, 2) for name, each in load_file(path).items()}, path)
    named = [(each.kind, each.subject) for each in verify_workspace(workspace).problems]
    assert ("curvature", f"curvature/{path.name}") in named
    with pytest.raises(StoreError, match="Delete the file: it is made anew"):
        fitted_needs(workspace, index_id, data, spec)
    path.unlink()
    fitted_needs(workspace, index_id, data, spec)
    assert path.read_bytes() == made
    assert verify_workspace(workspace).problems == ()
    (workspace.curvatures / "other.safetensors").write_bytes(b"laid there")
    [note] = [each for each in verify_workspace(workspace).notes if "unpinned" in each]
    assert "curvature/other.safetensors is unpinned: nothing uses it" in note
