"""What docs/adapters.md shows works as it stands there, and its table names what there is."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient, set_registry_uri, set_tracking_uri
from prefect.settings import PREFECT_API_URL
from torch.func import hessian
from typer.testing import CliRunner

import gradtrail
from gradtrail.attribution.curvature.blocks import default_curvature_kind
from gradtrail.cli import app
from gradtrail.lineage.read import queries
from gradtrail.settings import load_settings
from gradtrail.storage.models.weight_folders import WEIGHT_SUFFIXES

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text("utf-8")
BASES = (
    gradtrail.ModelAdapter,
    gradtrail.ClassificationAdapter,
    gradtrail.RegressionAdapter,
    gradtrail.CausalLMAdapter,
)


def block(name: str) -> str:
    return re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture
def project(tmp_path, migrated_mlflow, monkeypatch):
    """A folder with the page's adapter, where gradtrail is told of it as the page says."""
    (tmp_path / "claims.py").write_text(block("adapter"))
    (tmp_path / ".gradtrail").mkdir()
    shutil.copy(migrated_mlflow, tmp_path / ".gradtrail" / "mlflow.db")
    (tmp_path / "gradtrail.toml").write_text('allowed_adapters = ["claims:ClaimsAdapter"]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("claims").ClaimsAdapter()
    set_tracking_uri(None)
    set_registry_uri(None)


def test_every_method_and_attribute_of_the_page_is_there_and_none_is_missing():
    table = PAGE.partition("## Methods")[2].partition("\n`feature_names`")[0]
    described = dict(re.findall(r"^\| `(\w+)\(([^)]*)\)` \|", table, re.MULTILINE))
    methods = inspect.getmembers(gradtrail.ModelAdapter, inspect.isfunction)
    own = {
        name: ", ".join(list(inspect.signature(f).parameters)[1:]) for name, f in methods if not name.startswith("_")
    }
    assert described == own
    needed = set(gradtrail.ModelAdapter.__abstractmethods__)
    assert needed == {"build_model", "training_data", "losses", "emitted"}
    assert all(base.__abstractmethods__ == {"build_model", "training_data"} for base in BASES[1:])
    for name in re.findall(r"`(\w+)", PAGE.partition("\n`feature_names`")[2].partition("## Examples")[0]):
        assert any(hasattr(base, name) for base in BASES) or name == "feature_names", name
    assert [name for name in re.findall(r"gradtrail\.([A-Z]\w+)", PAGE) if not hasattr(gradtrail, name)] == []
    assert [suffix for suffix in re.findall(r"`(\.\w+)`", PAGE) if suffix not in WEIGHT_SUFFIXES] == []


def test_the_adapter_of_the_page_has_the_curvature_of_its_loss(project):
    batch = project.collate(project.training_data()[:5])
    torch.manual_seed(0)
    outputs = project.outputs(project.build_model(), batch)
    assert project.losses(outputs, batch).shape == (5,)
    assert len(project.emitted(outputs, batch)) == 5
    factors = project.curvature_factors(outputs, batch)
    exact = hessian(lambda given: project.losses(given, batch).sum())(outputs.detach())
    assert factors.shape == (1, 5, 1)
    assert torch.allclose(factors[0, :, 0] ** 2, exact.reshape(5, 5).diagonal())
    drawn = project.sample_targets(outputs, batch, torch.Generator().manual_seed(1))
    assert drawn.targets.shape == batch.targets.shape
    assert default_curvature_kind(project) == "fisher"


def test_the_registrations_of_the_page_are_ingested(project, prefect_server, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
    workspace = load_settings().workspace()
    set_tracking_uri(workspace.tracking_uri)
    # The default experiment of the copied database writes where that was made.
    own = MlflowClient().create_experiment("elsewhere", artifact_location=str(tmp_path / "artifacts"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", own)
    names: dict[str, object] = {}
    for name in ("register", "other means"):
        exec(compile(block(name), "docs/adapters.md", "exec"), names)  # noqa: S102 - our own page
    for command in ("gradtrail ingest claims@champion", block("ingest")):
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, f"{result.output}{result.exception}"
    with workspace.ledger().read() as connection:
        several = queries.model_version(connection, "claims/1")
        one = queries.model_version(connection, "elsewhere/1")
    assert (len(several.checkpoint_ids), len(one.checkpoint_ids)) == (2, 1)
    assert one.dataset_version_id == several.dataset_version_id
    assert one.adapter_sha256 == several.adapter_sha256
