"""The demo end to end, with real MLflow, Prefect, LanceDB and DuckDB."""

import json
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gradtrail.demo.digits import LICENCES, MISLABELLED_SOURCE, load_digits_data
from gradtrail.demo.run import OUTPUT_COUNT, demo_records, run_demo
from gradtrail.flows.audit import audit
from gradtrail.lineage.read import queries
from gradtrail.storage.sources.outputs import write_outputs
from gradtrail.tasks.govern.verifying import verify_workspace


def _audits(demo):
    with demo.workspace.ledger().read() as connection:
        return queries.audits(connection, "digits/1")


def _first(demo):
    with demo.workspace.ledger().read() as connection:
        return queries.audit_details(connection, queries.audits(connection, "digits/1")[0].audit_id)


def test_training_set_has_three_sources_and_a_few_wrong_labels_in_one():
    data = load_digits_data()
    by_source = {source: [e for e in data.training if e.attributes["source"] == source] for source in LICENCES}
    assert all(len(examples) > 200 for examples in by_source.values())
    assert 0.04 < len(data.mislabelled) / len(by_source[MISLABELLED_SOURCE]) < 0.08
    assert data.mislabelled <= {e.example_id for e in by_source[MISLABELLED_SOURCE]}
    assert {e.example_id for e in data.training}.isdisjoint(e.example_id for e in data.held_out)


def test_demo_says_what_the_audit_found_and_how_many_planted_labels_it_points_to(demo):
    figure = re.search(r"(\d+) of the (\d+) wrong labels planted in web-crawl", demo.printed)
    planted = load_digits_data().mislabelled
    assert int(figure[2]) == len(planted)
    opponents = [i.example_id for i in _first(demo).influences if i.side == "opponent"][: len(planted)]
    assert int(figure[1]) == len(planted & set(opponents))
    assert int(figure[1]) >= 0.6 * len(planted)


def test_audit_covers_the_dropped_outputs_with_every_wrong_prediction_among_them(demo):
    details = _first(demo)
    assert len(details.results) == OUTPUT_COUNT
    assert all(result.reproduced for result in details.results)
    wrong = {f"demo:{r['record_id']}" for r in demo_records(demo.workspace) if r["prediction"] != r["label"]}
    assert len(wrong) > 10
    assert wrong <= {result.output_id for result in details.results}


def test_the_audited_method_is_the_one_whose_fidelity_was_measured_best_and_the_report_shows_it(demo):
    details = _first(demo)
    with demo.workspace.ledger().read() as connection:
        found = queries.fidelities(connection, details.model_version.checkpoint_ids[-1])
    [chosen] = [fidelity for fidelity in found if fidelity.evidence.get("chosen")]
    assert details.audit.method == chosen.method
    assert chosen.value > 0.6
    assert 0 < chosen.value <= chosen.ceiling + 3 * chosen.standard_error
    report = json.loads((demo.workspace.reports / details.audit.audit_id / "report.json").read_text())
    assert report["trust"]["fidelity"]["value"] == pytest.approx(chosen.value)
    assert f"fidelity of {chosen.method}" in demo.printed


def test_shares_of_every_attribute_sum_to_one_per_output_and_overall(demo):
    sums = {}
    for share in _first(demo).shares:
        key = (share.output_id, share.side, share.attribute)
        sums[key] = sums.get(key, 0) + share.share
    assert len(sums) == (OUTPUT_COUNT + 1) * 2 * 3
    assert all(total == pytest.approx(1) for total in sums.values())


def test_policy_of_the_demo_produces_findings_about_unlicensed_data_and_suspect_labels(demo):
    rules = {finding.rule: finding for finding in _first(demo).findings}
    assert rules["unlicensed-data"].severity == "high"
    assert len(set(rules["suspect-labels"].evidence["example_ids"]) & load_digits_data().mislabelled) > 10


def test_report_files_agree_with_the_ledger(demo):
    details = _first(demo)
    folder = demo.workspace.reports / details.audit.audit_id
    rows = pq.read_table(folder / "attributions.parquet").to_pylist()
    assert {(r["output_id"], r["example_id"], r["side"]) for r in rows} == {
        (a.output_id, a.example_id, a.side) for a in details.attributions
    }
    html = (folder / "report.html").read_text()
    assert details.audit.audit_id in html
    assert f"demo:{details.results[0].output_id.partition(':')[2]}" in html


def test_mlflow_links_both_ways(demo):
    details = _first(demo)
    audit_id = details.audit.audit_id
    client = demo.workspace.registry().client
    version = client.get_model_version_by_alias("digits", "champion")
    experiment = client.get_experiment_by_name("gradtrail audits")
    runs = client.search_runs([experiment.experiment_id], f"tags.`gradtrail.audit` = '{audit_id}'")
    assert len(runs) == 1
    run = runs[0]
    assert run.data.metrics["outputs"] == OUTPUT_COUNT
    assert run.data.metrics["share_source/web-crawl"] > 0.3
    assert run.inputs.dataset_inputs[0].dataset.digest == details.dataset_version_id[:36]
    assert {f.path for f in client.list_artifacts(run.info.run_id)} == {
        "report.html",
        "report.json",
        "attributions.parquet",
    }
    page = f"/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}"
    assert f"{page}/artifacts/report.html" in run.data.tags["mlflow.note.content"]
    assert "/#/models/digits/versions/1" in run.data.tags["mlflow.note.content"]
    assert page in version.description
    assert page in client.get_run(version.run_id).data.tags["mlflow.note.content"]
    assert version.tags["gradtrail.adapter"] == "gradtrail.demo.digits:DigitsAdapter"
    html = (demo.workspace.reports / audit_id / "report.html").read_text()
    assert page in html
    assert "/#/models/digits/versions/1" in html


def test_demo_registers_safetensors_checkpoints_manifest_and_dataset_input(demo):
    client = demo.workspace.registry().client
    version = client.get_model_version_by_alias("digits", "champion")
    files = {Path(f.path).name for f in client.list_artifacts(version.run_id, "gradtrail")}
    assert len({name for name in files if name.endswith(".safetensors")}) == 3
    assert {"manifest.jsonl", "checkpoints.json"} <= files
    run = client.get_run(version.run_id)
    assert run.inputs.dataset_inputs[0].dataset.digest == version.tags["gradtrail.dataset_version"][:36]


def test_the_three_commands_to_try_next_work(demo):
    lines = demo.printed.split("Try next:")[1].splitlines()[1:4]
    commands = [shlex.split(line) for line in lines]
    assert [command[1] for command in commands] == ["explain", "sql", "verify"]
    for command in commands:
        result = subprocess.run(
            [sys.executable, "-m", "gradtrail.cli", *command[1:]], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        assert len(result.stdout.splitlines()) >= 2


@pytest.mark.slow  # a process with all imports and a Prefect server of its own
def test_an_audit_that_finds_nothing_new_prints_one_line_and_no_library_a_word(demo):
    command = [sys.executable, "-m", "gradtrail.cli", "audit", "digits@champion", "--home", str(demo.settings.home)]
    audit(demo.workspace, "digits@champion")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "Nothing new: every output of digits/1 in the inbox has been audited.\n"


def test_second_run_finds_nothing_new_and_makes_no_second_report(demo):
    before = _audits(demo)
    reports = sorted(demo.workspace.reports.iterdir())
    with redirect_stdout(StringIO()) as printed:
        run_demo(demo.settings)
    assert "Nothing new" in printed.getvalue()
    assert "flow audit" not in printed.getvalue()
    assert _audits(demo) == before
    assert sorted(demo.workspace.reports.iterdir()) == reports


def test_new_outputs_make_a_new_report_that_holds_only_those(demo):
    before = _audits(demo)
    records = demo_records(demo.workspace)[100:104]
    write_outputs(demo.workspace.inbox / "more.parquet", records)
    outcome = audit(demo.workspace, "digits@champion")
    assert outcome.output_count == 4
    new = [a for a in _audits(demo) if a not in before]
    assert [a.audit_id for a in new] == [outcome.audit_id]
    assert {output_id for output_id, _ in new[0].outputs} == {f"demo:{r['record_id']}" for r in records}
    assert Path(outcome.report).is_file()
    assert not verify_workspace(demo.workspace).problems


def test_a_run_after_new_outputs_goes_through_the_flows_again(demo):
    before = _audits(demo)
    records = demo_records(demo.workspace)[110:112]
    write_outputs(demo.workspace.inbox / "later.parquet", records)
    with redirect_stdout(StringIO()) as printed:
        run_demo(demo.settings)
    assert "flow audit" in printed.getvalue()
    assert "Nothing new" not in printed.getvalue()
    [new] = [each for each in _audits(demo) if each not in before]
    assert {output_id for output_id, _ in new.outputs} == {f"demo:{record['record_id']}" for record in records}
