"""The pages that say how to add one are followed to the letter, in a folder outside the tree."""

from __future__ import annotations

import csv
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from gradtrail.attribution.adapters import RegressionAdapter
from gradtrail.attribution.features.plan import FeatureSettings, plan_features, plan_from_config
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.methods.registry import METHODS
from gradtrail.cli import app
from gradtrail.errors import StoreError, UntrustedCodeError, UsageError
from gradtrail.flows.audit import audit
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.lineage.read import queries
from gradtrail.nouns import Example
from gradtrail.reports.policies.registry import RULES
from gradtrail.settings import Settings
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.core.extensions import load_extension, load_layer_rules, load_method

PAGES = Path(__file__).parents[2] / "docs" / "extending"


def block(page: str, language: str, number: int = 0) -> str:
    """A block of code of a page."""
    return re.findall(rf"```{language}\n(.*?)```", (PAGES / f"{page}.md").read_text("utf-8"), re.DOTALL)[number]


def write_module(page: str, folder: Path) -> str:
    """Write the page's module under the name in its first line, and return that name."""
    text = block(page, "python")
    file = folder / text.splitlines()[0].removeprefix("# ")
    file.write_text(text)
    return file.stem


@pytest.fixture
def project(tiny, prefect_server, monkeypatch):
    """A registered, indexed model whose project holds the modules of all pages."""
    for page in ("layer-rule", "method", "source", "policy-rule", "export"):
        sys.modules.pop(write_module(page, tiny.folder), None)
    monkeypatch.chdir(tiny.folder)
    monkeypatch.syspath_prepend(tiny.folder)
    tiny.register()
    ingest(tiny.workspace, "tiny@champion")
    index(tiny.workspace, "tiny@champion")
    yield tiny
    for registry in (METHODS, RULES):
        for name in [each for each in registry if ":" in each]:
            registry.discard(name)


def settings_of(tiny, text: str) -> Settings:
    """Settings as a user writes them, for the project's home."""
    told = {"home": str(tiny.home), "allowed_adapters": [tiny.reference], "adapter_path": str(tiny.folder)}
    (tiny.folder / "gradtrail.toml").write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in told.items()) + text)
    return Settings()


def test_a_source_a_policy_rule_a_method_and_an_export_of_other_packages_serve_one_audit(project):
    exports = project.folder / "exports"
    exports.mkdir()
    with (exports / "day.csv").open("w", newline="") as stream:
        rows = [{**record, "inputs": json.dumps(record["inputs"])} for record in map(project.record, range(3))]
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (project.folder / "policy.toml").write_text(block("policy-rule", "toml"))
    allowed = [block(page, "toml", number).splitlines()[0] for page, number in (("method", 0), ("export", 0))]
    allowed += [block("source", "toml").splitlines()[0], block("policy-rule", "toml", 1).splitlines()[0]]
    references = [reference for line in allowed for reference in json.loads(line.partition(" = ")[2])]
    source = block("source", "toml").partition("\n\n")[2]
    workspace = settings_of(
        project, f'extensions = {json.dumps(references)}\npolicy = "policy.toml"\n{source}'
    ).workspace()

    outcome = audit(workspace, "tiny@champion", AuditOptions(method="query_cosine:query_cosine"))

    with workspace.ledger().read() as connection:
        details = queries.audit_details(connection, outcome.audit_id)
    assert {output_id for output_id, _ in details.audit.outputs} == {f"exports:out-{number}" for number in range(3)}
    assert details.audit.method == "query_cosine:query_cosine"
    assert len(details.audit.parameters["method_sha256"]) == 64
    assert {(found.rule, found.severity) for found in details.findings} >= {("more-than-one-source", "low")}
    assert "come from 2 source" in (workspace.reports / outcome.audit_id / "report.html").read_text()
    ran = CliRunner().invoke(
        app, block("export", "bash").replace("AUDIT_ID", outcome.audit_id[:12]).split()[1:], catch_exceptions=False
    )
    assert ran.exit_code == 0, ran.output
    assert (project.folder / "sources.csv").read_text().splitlines()[0] == "source,side,share"
    plain = audit(workspace, "tiny@champion", AuditOptions(method="grad_dot"))
    assert plain.audit_id == ""  # every output has its audit


def test_nothing_runs_that_the_settings_do_not_allow(project):
    workspace = settings_of(project, "").workspace()
    for reference in ("query_cosine:query_cosine", "csv_folder:CsvFolder", "few_sources:few_sources"):
        with pytest.raises(UntrustedCodeError, match="is not on the allow-list"):
            load_extension(workspace, reference)
        assert reference.partition(":")[0] not in sys.modules
    with pytest.raises(UntrustedCodeError, match=r"add it to gradtrail.toml: extensions = \["):
        audit(workspace, "tiny@champion", AuditOptions(method="query_cosine:query_cosine"))


def test_what_is_allowed_and_is_not_what_it_should_be_is_named(project):
    (project.folder / "nothing.py").write_text("value = 1\n")
    workspace = settings_of(project, 'extensions = ["nothing:*"]\nlayer_rules = ["nothing:value"]\n').workspace()
    with pytest.raises(UsageError, match="nothing:value is no layer rule"):
        load_layer_rules(workspace)
    with pytest.raises(UsageError, match="nothing:value is no attribution method"):
        load_method(workspace, "nothing:value")


@pytest.fixture
def scaled(tmp_path, monkeypatch):
    """The page's module, and an adapter of a model with its layer."""
    write_module("layer-rule", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.reload(importlib.import_module("scale_rule"))

    class Adapter(RegressionAdapter):
        def build_model(self) -> nn.Module:
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(4, 6), module.Scale(6), nn.Tanh(), nn.Linear(6, 1))

        def training_data(self) -> list[Example]:
            inputs = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
            return [Example(f"row-{i}", row, float(row.sum()), {}) for i, row in enumerate(inputs)]

    return Adapter()


@pytest.mark.parametrize("dimension", [4, 64])
def test_the_layer_rule_of_the_page_gives_the_projection_of_what_autograd_gives(scaled, dimension):
    model, examples = scaled.build_model().eval(), scaled.training_data()
    plan = plan_features(model, FeatureSettings(dimension, dtype="float64"))
    position = [group.name for group in plan.groups].index("1")
    projections = plan.projections(torch.float64)[position]
    rows = compute_features(scaled, model, examples, plan).vectors[:, plan.slices[position]]
    for example, row in zip(examples, rows, strict=True):
        batch = scaled.collate([example])
        [gradient] = torch.autograd.grad(scaled.losses(model(batch.inputs), batch).sum(), [model[1].weight])
        expected = torch.outer(gradient.double() @ projections.outputs[0], projections.inputs[0, 0]).flatten()
        torch.testing.assert_close(row.double(), expected, rtol=1e-5, atol=1e-6)


def test_an_index_knows_the_source_of_the_layer_rule_that_measured_it(scaled, tmp_path):
    model = scaled.build_model()
    config = plan_features(model, FeatureSettings()).config()
    assert set(config["layer_rules"]) == {"scale_rule:ScaleRule"}
    assert plan_from_config(model, config).config() == config
    with (tmp_path / "scale_rule.py").open("a") as stream:
        stream.write("# changed\n")
    with pytest.raises(StoreError, match="measured with other layer_rules"):
        plan_from_config(model, config)


def test_a_layer_rule_of_the_settings_is_there_in_a_process_of_its_own(project):
    workspace = settings_of(project, block("layer-rule", "toml")).workspace()
    assert workspace.layer_rules == ("scale_rule:ScaleRule",)
    code = (
        "from gradtrail.settings import Settings\n"
        "from gradtrail.tasks.core.models import pinned_model\n"
        "from gradtrail.attribution.layers.registry import find_rule\n"
        "pinned_model(Settings().workspace(), 'tiny/1')\n"
        "import scale_rule; print(type(find_rule(scale_rule.Scale(3))).__name__)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["ScaleRule"]


def test_every_page_is_listed_where_contributors_look():
    listed = (PAGES.parents[1] / "CONTRIBUTING.md").read_text("utf-8")
    assert all(f"docs/extending/{page.name}" in listed for page in PAGES.glob("*.md"))
