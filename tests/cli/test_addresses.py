"""Addresses with secrets: masked wherever they are printed, and by name where they travel."""

from __future__ import annotations

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from gradtrail.cli import app
from gradtrail.errors import DataError, UsageError, said
from gradtrail.secret_addresses import resolved, without_secrets
from gradtrail.settings import load_settings
from gradtrail.storage.models.registry import Registry

SECRET = "correct-horse"  # noqa: S105 - of nothing


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://audit:{SECRET}@host:5000/x", "http://audit:***@host:5000/x"),
        (f"at postgresql+psycopg://u:{SECRET}@p@host/db.", "at postgresql+psycopg://u:***@host/db."),
        (f"two https://a:{SECRET}@b and s3://k:{SECRET}@c", "two https://a:***@b and s3://k:***@c"),
        (f"https://:{SECRET}@host", "https://:***@host"),
        (f"https://host/?a=1&api_key={SECRET}&b=2", "https://host/?a=1&api_key=***&b=2"),
        (f"https://host/?X-Amz-Signature={SECRET}", "https://host/?X-Amz-Signature=***"),
        ("http://host:5000/a and b@c", "http://host:5000/a and b@c"),
        ("sqlite:////home/x/mlflow.db", "sqlite:////home/x/mlflow.db"),
    ],
)
def test_secrets_in_addresses_are_masked_and_the_rest_stays(text, shown):
    assert without_secrets(text) == shown
    assert str(DataError(text, text)) == f"{shown} {shown}"
    assert said(ValueError(text)) == f"ValueError: {shown}"


def test_no_command_shows_a_password_and_no_parameter_holds_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("MLFLOW_TRACKING_URI", "OPENLINEAGE", "SOURCE_ANSWERS"):
        monkeypatch.setenv(f"GRADTRAIL_KEPT_{name}", "")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    (tmp_path / "gradtrail.toml").write_text(
        f"""mlflow_tracking_uri = "http://audit:{SECRET}@127.0.0.1:9"
openlineage = "http://lineage:{SECRET}@127.0.0.1:9"
[[models]]
reference = "m@champion"
[[sources]]
name = "answers"
kind = "sql"
location = "postgresql://u:{SECRET}@127.0.0.1/db"
table = "made"
time_column = "time"
"""
    )
    for words in (["doctor"], ["doctor", "--json"], ["deployments"]):
        assert SECRET not in CliRunner().invoke(app, words).output
    workspace = load_settings().workspace()
    assert SECRET not in json.dumps(dataclasses.asdict(workspace))
    assert workspace.tracking_uri.startswith("env:")
    assert resolved(workspace.tracking_uri) == f"http://audit:{SECRET}@127.0.0.1:9"
    assert SECRET in workspace.sources[0].resolved_location()


def test_a_missing_model_is_named_without_the_password(migrated_mlflow):
    registry = Registry(f"sqlite:///{migrated_mlflow}")
    registry.tracking_uri = f"http://audit:{SECRET}@host"
    with pytest.raises(UsageError, match=r"No model named nobody is registered at http://audit:\*\*\*@host") as fault:
        registry.resolve("nobody")
    assert SECRET not in str(fault.value)


def test_the_address_of_mlflow_can_be_named_by_a_variable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gradtrail.toml").write_text('mlflow_tracking_uri = "env:WHERE_MLFLOW_IS"\n')
    monkeypatch.delenv("WHERE_MLFLOW_IS", raising=False)
    with pytest.raises(UsageError, match="in the variable WHERE_MLFLOW_IS, which is not set"):
        load_settings().workspace().registry()
    assert "WHERE_MLFLOW_IS, which is not set" in CliRunner().invoke(app, ["doctor"]).output
    monkeypatch.setenv("WHERE_MLFLOW_IS", f"sqlite:///{tmp_path}/mlflow.db")
    assert load_settings().workspace().registry().tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
