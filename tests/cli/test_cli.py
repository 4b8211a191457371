"""The command line as a user and as a script meet it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from prefect.settings import PREFECT_API_URL
from typer.testing import CliRunner

import gradtrail
from gradtrail.cli import app, main

CHECKOUT = Path(__file__).resolve().parents[2]
runner = CliRunner()


def _home(demo):
    return ["--home", str(demo.workspace.home)]


def _json(demo, *arguments):
    result = runner.invoke(app, [*arguments, *_home(demo), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_explain_gives_the_whole_chain_as_json(demo):
    found = _json(demo, "sql", "SELECT output_id FROM audit_output ORDER BY output_id LIMIT 1")
    chain = _json(demo, "explain", found[0]["output_id"])
    assert chain["model_version"]["name"] == "digits"
    assert len(chain["checkpoint"]["checkpoint_id"]) == 64
    assert {"source", "licence", "label"} <= set(chain["proponents"][0]["attributes"])


def test_lineage_goes_up_to_the_source_and_down_to_the_output(demo):
    output_id = _json(demo, "sql", "SELECT output_id FROM audit_output ORDER BY output_id LIMIT 1")[0]["output_id"]
    kinds = {node["kind"] for node in _json(demo, "lineage", output_id, "--up")}
    assert {"output", "example", "source", "licence", "model_version", "checkpoint", "run", "dataset_version"} <= kinds
    example = next(n for n in _json(demo, "lineage", output_id) if n["kind"] == "example")
    assert output_id in {node["node_id"] for node in _json(demo, "lineage", example["node_id"], "--down")}


def test_sql_prints_a_table_and_its_schema(demo):
    result = runner.invoke(app, ["sql", "SELECT count(*) AS examples FROM example", *_home(demo)])
    assert "1200" in result.stdout
    schema = runner.invoke(app, ["sql", "--schema", *_home(demo)]).stdout
    assert "output_lineage" in schema
    assert "sha256 of the manifest" in schema


def test_report_is_found_and_written_again_when_its_file_is_gone(demo):
    found = _json(demo, "report")
    html = Path(found["html"])
    before = html.read_bytes()
    html.unlink()
    again = _json(demo, "report", found["audit_id"][:12])
    assert again["rewritten"]
    assert html.read_bytes() == before
    assert found["mlflow_url"].startswith("http://127.0.0.1:5000/#/experiments/")


def test_methods_name_their_sources():
    listed = json.loads(runner.invoke(app, ["methods", "--json"]).stdout)
    assert {"grad_dot", "grad_cos", "influence"} <= {method["name"] for method in listed}
    assert all("arXiv" in method["source"] or method["source"] for method in listed)


def test_doctor_finds_this_installation_fit(demo):
    findings = _json(demo, "doctor")
    assert not [finding for finding in findings if finding["status"] == "fault"]
    assert {"python", "torch", "mlflow", "ledger", "prefect"} <= {finding["what"] for finding in findings}


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["explain", "no-such-output"], 2, "no-such-output"),
        (["sql", "DROP TABLE audit"], 2, "Remedy"),
        (["sql", "SELECT * FROM read_csv('/etc/passwd')"], 2, "Error"),
        (["lineage", "x", "--up", "--down"], 2, "Choose one"),
        (["report", "ffffffffffff"], 2, "ffffffffffff"),
        (["outputs", "add", "missing.parquet"], 1, "missing.parquet"),
        (["register", "missing.pt", "--adapter", "nope", "--name", "x"], 2, "module:Class"),
    ],
)
def test_errors_name_the_thing_and_the_remedy_in_two_lines(demo, arguments, exit_code, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gradtrail", *arguments, *_home(demo)])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    assert stopped.value.code == exit_code
    assert said in captured.err
    assert "Traceback" not in captured.err


def test_weights_on_disk_are_registered_from_the_command_line(tiny, monkeypatch):
    weights = tiny.folder / "weights.pt"
    torch.save(tiny.adapter().build_model().state_dict(), weights)
    monkeypatch.setenv("GRADTRAIL_ADAPTER_PATH", str(tiny.folder))
    monkeypatch.setenv("GRADTRAIL_MLFLOW_TRACKING_URI", tiny.workspace.tracking_uri)
    arguments = ["register", str(weights), "--adapter", tiny.reference, "--name", "tiny", "--alias", "champion"]
    result = runner.invoke(app, [*arguments, "--home", str(tiny.home), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model_version_id"] == "tiny/1"
    assert tiny.workspace.registry().resolve("tiny@champion").tags["gradtrail.adapter"] == tiny.reference


def test_unknown_settings_are_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "gradtrail.toml").write_text('hom = "x"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gradtrail", "verify"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "hom" in capsys.readouterr().err


def test_asking_before_anything_was_recorded_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gradtrail", "sql", "FROM audit", "--home", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code != 0
    assert "Remedy" in capsys.readouterr().err


def test_connect_gives_a_read_only_handle_for_notebooks(demo):
    trail = gradtrail.connect(demo.workspace.home)
    frame = trail.sql("SELECT output_id FROM audit_output ORDER BY output_id").pandas()
    output_id = frame["output_id"][0]
    assert trail.sql("SELECT 1 AS one").arrow().to_pylist() == [{"one": 1}]
    explanation = trail.explain(output_id)
    assert explanation.output.output_id == output_id
    assert {node.kind for node in trail.upstream(output_id)} >= {"example", "checkpoint"}
    with pytest.raises(gradtrail.errors.UsageError):
        trail.sql("DELETE FROM audit")


def test_the_readmes_tour_works_as_written(prefect_server, migrated_mlflow, tmp_path, monkeypatch):
    text = (CHECKOUT / "README.md").read_text()
    block = re.search(r"<!-- tour -->\n```bash\n(.*?)```", text, re.DOTALL)[1]
    commands = [line.split("  #")[0].strip() for line in block.splitlines() if line.strip()]
    assert len(commands) >= 9
    folder = tmp_path / "own_model"
    shutil.copytree(CHECKOUT / "examples" / "own_model", folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".gradtrail").mkdir()
    shutil.copy(migrated_mlflow, folder / ".gradtrail")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_API_URL": PREFECT_API_URL.value(),
    }
    said = {}
    for command in commands[:2]:
        result = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    # The rest runs here: to start nine more processes takes longer than all that they do.
    monkeypatch.chdir(folder)
    for command in commands[2:]:
        program, *arguments = shlex.split(command)
        assert program == "gradtrail"
        result = runner.invoke(app, arguments)
        assert result.exit_code == 0, f"{command}\n{result.output}{result.exception}"
        said[command] = result.stdout
    assert "Audited 20 outputs of tumours/1" in said["gradtrail audit tumours@champion"]
    assert "hospital-" in said["gradtrail explain inbox:case-000"]
    assert "Nothing was changed" in said["gradtrail verify"]


def test_a_refused_flow_prints_two_lines_and_no_traceback(prefect_server, migrated_mlflow, tmp_path):
    (tmp_path / "home").mkdir()
    shutil.copy(migrated_mlflow, tmp_path / "home")
    command = [sys.executable, "-m", "gradtrail.cli", "ingest", "nobody@champion", "--home", str(tmp_path / "home")]
    environment = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()}
    environment.pop("PREFECT_LOGGING_LEVEL", None)
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 2
    said = [line for line in result.stderr.splitlines() if line.strip()]
    assert said[0].startswith("Error: No model named nobody")
    assert said[1].startswith("Remedy:")
    assert len(said) == 2
