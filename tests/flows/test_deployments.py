"""The deployment file describes flows that exist, with parameters that they take as plain JSON."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import yaml

from gradtrail.flows.audit import audit
from gradtrail.flows.ingest import ingest
from gradtrail.tasks.workspace import Workspace

DEPLOYMENTS = yaml.safe_load((Path(__file__).resolve().parents[2] / "deploy" / "prefect.yaml").read_text())


@pytest.mark.parametrize("deployment", DEPLOYMENTS["deployments"], ids=lambda deployment: deployment["name"])
def test_every_deployment_names_a_flow_and_parameters_it_accepts(deployment):
    module, _, name = deployment["entrypoint"].partition(":")
    flow = getattr(importlib.import_module(module), name)
    accepted = flow.validate_parameters(deployment["parameters"])
    assert isinstance(accepted["workspace"], Workspace)


def test_flows_run_from_plain_json_parameters(tiny, prefect_server):
    tiny.register()
    plain = json.loads(json.dumps(dataclasses.asdict(tiny.workspace)))
    assert ingest(plain, "tiny@champion").new
    with pytest.raises(Exception, match="gradtrail index tiny/1"):
        audit(plain, "tiny@champion")
