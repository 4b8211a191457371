"""The command line as a user and as a script meet it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL
from safetensors.torch import save_file
from typer.testing import CliRunner

import gradtrail
from gradtrail.cli import app, main
from gradtrail.errors import UsageError
from gradtrail.settings import load_settings
from gradtrail.tasks.core.watched import is_cron

CHECKOUT = Path(__file__).resolve().parents[2]
KEY_TEXT = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEI\n-----END PRIVATE KEY-----\n"
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


@pytest.mark.parametrize("place", ["weights.PT", "checkpoint-10"])
def test_weights_on_disk_are_registered_from_the_command_line(tiny, monkeypatch, place):
    weights = tiny.folder / place
    state = tiny.adapter().build_model().state_dict()
    if weights.suffix:
        torch.save(state, weights)
    else:
        weights.mkdir()
        save_file(state, weights / "model.safetensors")
        torch.save({}, weights / "optimizer.pt")
    monkeypatch.setenv("GRADTRAIL_ADAPTER_PATH", str(tiny.folder))
    monkeypatch.setenv("GRADTRAIL_MLFLOW_TRACKING_URI", tiny.workspace.tracking_uri)
    arguments = ["register", str(weights), "--adapter", tiny.reference, "--name", "tiny", "--alias", "champion"]
    result = runner.invoke(app, [*arguments, "--home", str(tiny.home), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model_version_id"] == "tiny/1"
    version = tiny.workspace.registry().resolve("tiny@champion")
    assert version.tags["gradtrail.adapter"] == tiny.reference
    [file] = tiny.workspace.registry().fetch(version, tiny.folder / "fetched").glob("*.safetensors")
    assert file.name == ("step-00000000.safetensors" if weights.suffix else "step-00000010.safetensors")


@pytest.mark.parametrize(
    ("file", "variables", "said"),
    [
        ('hom = "x"', {}, ["gradtrail.toml: hom: there is no such key", "Known keys: home, mlflow_tracking_uri"]),
        ("watch_seconds =", {}, ["gradtrail.toml are no TOML", "line 1", "Correct /"]),
        ("", {"GRADTRAIL_ALLOWED_ADAPTERS": "a:B"}, ["GRADTRAIL_ALLOWED_ADAPTERS cannot be read", '["my_adapter:MyA']),
        ("watch_seconds = 60", {"GRADTRAIL_WATCH_SECONDS": "1"}, ["GRADTRAIL_WATCH_SECONDS: Input should be greater"]),
        (
            '[[models]]\nrefrence = "a"',
            {},
            ["models.0.reference: it is missing; ", "models.0.refrence: there is no", "[[models]]: reference, adapter"],
        ),
        ("", {"GRADTRAIL_MODELS": '[{"refrence": "a"}]'}, ["GRADTRAIL_MODELS.0.refrence: there is no such key"]),
        ('[models]\nreference = "a"', {}, ["gradtrail.toml: models: Input should be", "[[models]]"]),
        (
            '[[models]]\nreference = "a"\naudit = "every day"',
            {},
            ["gradtrail.toml: models.0: The schedule 'every day' of a is no cron.", '"*/15 * * * *"'],
        ),
        ('[[sources]]\nname = "A b"\nkind = "inbox"', {}, ["sources.0: The source 'A b'", "Use small letters"]),
        ('[[webhooks]]\nurl = "x"\nsecret_env = "Y"', {}, ["gradtrail.toml: webhooks.0: The webhook 'x'", "env:NAME"]),
        ("", {"GRADTRAIL_SIGNING_KEY": KEY_TEXT}, ["GRADTRAIL_SIGNING_KEY: it holds the text of a key", "path"]),
    ],
)
def test_settings_that_cannot_be_used_are_named_with_place_cause_and_remedy(
    file, variables, said, tmp_path, monkeypatch, capsys
):
    (tmp_path / "gradtrail.toml").write_text(file + "\n")
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["gradtrail", "sql", "SELECT 1"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    error, remedy = capsys.readouterr().err.splitlines()
    assert error.startswith("Error: ")
    assert remedy.startswith("Remedy: ")
    assert [part for part in said if part not in error and part not in remedy] == []


def test_no_trace_of_an_error_shows_a_key_in_the_place_of_its_path(monkeypatch):
    monkeypatch.setenv("GRADTRAIL_SIGNING_KEY", KEY_TEXT)
    with pytest.raises(UsageError) as caught:
        load_settings()
    assert "MC4CAQAw" not in "".join(traceback.format_exception(caught.value))


def test_a_schedule_is_a_cron_where_prefect_says_so():
    tried = (
        "*/15 * * * *", "@daily", "0 0 * * mon-fri", "0 0 l * *", "0 0 * * 5#2", "0 22-2 * * *", "5/15 * * * *",
        "0 0 1 JAN *", "0 0 * * 7", "1-5/2,7 * * * *", "0 0 ? * *", "  0 3 * * * ", "*/61 * * * *",
        "every day", "60 * * * *", "* * * *", "*/0 * * * *", "0 0 * * 8", "0 0 0 * *", "@every day", "H * * * *",
        "1,,2 * * * *", "", "0 0 * * sunday", "@reboot", "0 0 15W * *", "* * * 13 *", "0 24 * * *",
    )  # fmt: skip
    found = {text: is_cron(text) for text in tried}
    assert found == {text: _prefect_takes(text) for text in tried}
    assert list(found.values()).count(True) == 13


def _prefect_takes(text):
    try:
        return bool(CronSchedule(cron=text))
    except ValueError:
        return False


ADAPTER = """
from torch import nn
import gradtrail

class Adapter(gradtrail.ClassificationAdapter):
    def __init__(self):
        {made}

    def build_model(self):
        return nn.Linear(2, 2)

    def training_data(self):
        {data}
"""


@pytest.mark.parametrize(
    ("made", "data", "told"),
    [
        ("open_file = {}['weights']", "return []", "Adapter.__init__ fails: KeyError: 'weights'."),
        ("pass", "return 1 / 0", "Adapter.training_data fails: ZeroDivisionError: division by zero."),
    ],
    ids=["made", "training data"],
)
@pytest.mark.parametrize("traced", [False, True])
def test_what_an_adapter_raises_is_one_sentence_and_a_traceback_only_where_it_is_asked_for(
    tmp_path, monkeypatch, capsys, made, data, told, traced
):
    name = f"failing_{'traced' if traced else 'plain'}_{len(made)}"
    (tmp_path / f"{name}.py").write_text(ADAPTER.format(made=made, data=data))
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    words = ["register", "weights.pt", "--adapter", f"{name}:Adapter", "--name", "m", "--home", str(tmp_path / "home")]
    monkeypatch.setattr(sys, "argv", ["gradtrail", *words])
    if traced:
        monkeypatch.setenv("GRADTRAIL_TRACEBACK", "1")
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert told in said
    assert ("Traceback" in said) == traced


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


@pytest.mark.ci  # every command of the tour
def test_the_tour_with_an_own_model_works_as_written(prefect_server, migrated_mlflow, tmp_path, monkeypatch):
    text = (CHECKOUT / "docs" / "own-model.md").read_text()
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


@pytest.mark.ci  # a process with all imports
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
