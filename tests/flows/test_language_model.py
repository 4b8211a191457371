"""A tiny GPT-2, from the adapter in the documentation to an audit report."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import gradtrail
from gradtrail.attribution.adapters.loading import load_adapter
from gradtrail.flows.audit import audit
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.lineage.read import queries
from gradtrail.settings import Settings

pytestmark = pytest.mark.ci  # a model of language from registration to report

PAGE = Path(__file__).parents[2] / "docs" / "language-models.md"


@pytest.fixture
def sayings(tmp_path, migrated_mlflow):
    """The documented adapter as a user's module, and settings that allow it."""
    block = re.search(r"<!-- language model -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "documented_sayings.py").write_text(block[1])
    home = tmp_path / "home"
    home.mkdir()
    shutil.copyfile(migrated_mlflow, home / "mlflow.db")
    return Settings(
        home=home,
        mlflow_tracking_uri=f"sqlite:///{home / 'mlflow.db'}",
        allowed_adapters=("documented_sayings:SayingsAdapter",),
        adapter_path=tmp_path,
        preview="full",
    )


def _trained(adapter):
    torch.manual_seed(0)
    model = adapter.build_model()
    batch = adapter.collate(adapter.training_data())
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(120):
        optimiser.zero_grad()
        adapter.losses(adapter.outputs(model, batch), batch).mean().backward()
        optimiser.step()
    return model.eval()


def _completion(adapter, model, prompt, count):
    tokens = list(adapter.encode(prompt))
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return adapter.decode(tokens[-count:])


def test_the_documented_language_model_is_audited_from_registration_to_report(sayings, prefect_server):
    adapter = load_adapter(
        "documented_sayings:SayingsAdapter", allowed=sayings.allowed_adapters, search_path=sayings.adapter_path
    ).adapter
    model = _trained(adapter)
    gradtrail.register(model, adapter=adapter, name="sayings", alias="champion", settings=sayings)
    workspace = sayings.workspace()
    ingest(workspace, "sayings@champion")
    index(workspace, "sayings@champion")
    example = json.loads(re.search(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)[1])
    said = _completion(adapter, model, example["prompt"], len(example["prediction"]))
    assert said == example["prediction"]
    other = {**example, "record_id": "2", "prompt": [adapter.encode("t")[0]], "prediction": adapter.encode("qq")}
    workspace.inbox.mkdir(parents=True, exist_ok=True)
    (workspace.inbox / "outputs.jsonl").write_text(json.dumps(example) + "\n" + json.dumps(other) + "\n")
    outcome = audit(workspace, "sayings@champion")
    assert outcome.output_count == 2
    with workspace.ledger().read() as connection:
        details = queries.audit_details(connection, outcome.audit_id)
    results = {result.output_id: result for result in details.results}
    assert results["inbox:1"].reproduced
    assert (results["inbox:2"].reproduced, results["inbox:2"].prediction) == (False, "qq")
    best = min(
        (each for each in details.attributions if each.output_id == "inbox:1" and each.side == "proponent"),
        key=lambda each: each.rank,
    )
    assert best.example_id == "saying-1"
    report = (workspace.reports / outcome.audit_id / "report.html").read_text()
    assert "old habits die hard." in report
    assert "old  ⟶ habits" in report
    assert "raises the probability of the continuation" in report
