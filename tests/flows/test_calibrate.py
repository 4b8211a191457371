"""Calibration end to end: further training, fidelity in the ledger, method auto, the report's figure."""

import json

import pytest
import torch

from gradtrail.attribution.further_training import FurtherTraining, RunCost
from gradtrail.errors import GradtrailError, ModelError, NotFoundError, UsageError
from gradtrail.flows.audit import audit
from gradtrail.flows.calibrate import calibrate
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.lineage import queries
from gradtrail.printing import show_calibration
from gradtrail.tasks.auditing import AuditOptions
from gradtrail.tasks.calibration_plans import CalibrateOptions, fit_to_budget
from gradtrail.tasks.reporting import build_report
from gradtrail.tasks.verifying import verify_workspace

MODEL = "tiny@champion"
QUICK = {"budget_seconds": 1.0, "steps": (2, 6), "learning_rate": 0.1, "batch_size": 16}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def indexed(tiny, prefect_server):
    tiny.register()
    ingest(tiny.workspace, MODEL)
    index(tiny.workspace, MODEL)
    return tiny


def _quick(**changes):
    return CalibrateOptions(**{**QUICK, **changes})


def _fidelities(tiny):
    with tiny.workspace.ledger().read() as connection:
        [serving] = queries.model_version(connection, "tiny/1").checkpoint_ids
        return queries.fidelities(connection, serving)


def _report(tiny, outcome):
    return json.loads((tiny.workspace.reports / outcome.audit_id / "report.json").read_text())


def test_a_calibration_measures_methods_and_audits_take_the_best(indexed, capsys):
    indexed.drop("a.jsonl", *(indexed.record(number) for number in range(14)))
    before = audit(indexed.workspace, MODEL)
    assert _report(indexed, before)["trust"]["method"] == "influence"
    assert _report(indexed, before)["trust"]["fidelity"] is None

    capsys.readouterr()
    outcome = calibrate(indexed.workspace, MODEL, _quick())
    assert f"{outcome.plan.runs} runs, about" in capsys.readouterr().err
    assert outcome.plan.query_source == "outputs"
    assert len(outcome.plan.query_ids) == 14
    assert outcome.trained == outcome.plan.runs >= 18
    measured = {(each.method, each.parameters.get("relative_damping")) for each in outcome.methods}
    assert {("grad_dot", None), ("grad_cos", None), ("influence", 0.1), ("influence_global", 100.0)} <= measured
    [chosen] = [each for each in outcome.methods if each.chosen]
    assert [figure.steps for figure in chosen.by_steps] == [2, 6]
    assert chosen.by_steps[-1].spearman > 0.5
    assert all(figure.queries == 7 for each in outcome.methods for figure in each.by_steps)

    show_calibration(outcome, as_json=False)
    printed = capsys.readouterr().out
    [marked] = [line for line in printed.splitlines() if line.startswith("→")]
    assert chosen.method in marked
    assert f"{chosen.by_steps[-1].spearman:.3f} ± {chosen.by_steps[-1].spearman_error:.3f}" in marked
    assert "ceiling" in printed
    show_calibration(outcome, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert [each["method"] for each in said["methods"] if each["chosen"]] == [chosen.method]

    rows = _fidelities(indexed)
    assert len(rows) == len(outcome.methods) * 2
    [best] = [row for row in rows if row.evidence["chosen"]]
    assert (best.method, best.parameters) == (chosen.method, chosen.parameters)
    assert (best.metric, best.value) == ("fidelity_subset", chosen.by_steps[-1].spearman)

    indexed.drop("b.jsonl", indexed.record(20))
    after = audit(indexed.workspace, MODEL)
    report = _report(indexed, after)
    assert report["trust"]["method"] == chosen.method
    assert report["trust"]["fidelity"]["value"] == pytest.approx(best.value)
    assert any("random halves left out" in note for note in report["trust"]["fidelity_notes"])
    with indexed.workspace.ledger().read() as connection:
        pinned = queries.audit(connection, after.audit_id)
    assert pinned.method == chosen.method
    assert {name: pinned.parameters[name] for name in chosen.parameters} == chosen.parameters
    assert not verify_workspace(indexed.workspace).problems

    assert build_report(indexed.workspace, before.audit_id).trust.fidelity is None
    assert build_report(indexed.workspace, after.audit_id).trust.fidelity == best
    for options in ({"relative_damping": 3.0}, {"horizon": 1.0}, {"curvature": "empirical"}):
        with pytest.raises(UsageError, match="Method auto takes"):
            audit(indexed.workspace, MODEL, AuditOptions(**options))


def test_a_killed_calibration_resumes_and_a_complete_one_trains_nothing(indexed, monkeypatch):
    trained = FurtherTraining.run
    count = 0

    def killed(self, seed, left_out=frozenset(), *, most_steps=None):
        nonlocal count
        count += most_steps is None
        if count > 7:
            raise KeyboardInterrupt
        return trained(self, seed, left_out, most_steps=most_steps)

    options = _quick(methods=("grad_dot",))
    with monkeypatch.context() as patched:
        patched.setattr(FurtherTraining, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            calibrate(indexed.workspace, MODEL, options)
    assert _fidelities(indexed) == []
    resumed = calibrate(indexed.workspace, MODEL, options)
    assert resumed.trained == resumed.plan.runs - 7
    rows = _fidelities(indexed)
    again = calibrate(indexed.workspace, MODEL, options)
    assert again.trained == 0
    assert again.methods == resumed.methods
    assert _fidelities(indexed) == rows
    assert {row.evidence["query_source"] for row in rows} == {"training examples"}


def test_a_low_fidelity_fires_the_policy_and_training_queries_are_named(indexed):
    calibrate(indexed.workspace, MODEL, _quick(methods=("grad_cos",)))
    policy = indexed.folder / "policy.toml"
    policy.write_text('[rules.fidelity]\nkind = "fidelity_below"\nseverity = "high"\nlimit = 1.0\n')
    indexed.drop("a.jsonl", indexed.record(1))
    outcome = audit(indexed.settings.model_copy(update={"policy": policy}).workspace(), MODEL)
    report = _report(indexed, outcome)
    assert report["trust"]["method"] == "grad_cos"
    assert [finding["rule"] for finding in report["findings"]] == ["fidelity"]
    assert any("measured on training examples" in note for note in report["trust"]["fidelity_notes"])
    html = (indexed.workspace.reports / outcome.audit_id / "report.html").read_text()
    assert "indicative only" in html


def test_outputs_in_the_inbox_are_queries_before_any_audit(indexed):
    indexed.drop("a.jsonl", *(indexed.record(number) for number in range(12)), indexed.record(50, prediction="nine"))
    outcome = calibrate(indexed.workspace, MODEL, _quick(methods=("grad_dot",)))
    assert (outcome.plan.query_source, len(outcome.plan.query_ids)) == ("outputs", 12)
    assert audit(indexed.workspace, MODEL).output_count == 12


def test_another_index_has_no_fidelity_until_it_is_calibrated(indexed):
    from gradtrail.tasks.indexing import IndexOptions

    calibrate(indexed.workspace, MODEL, _quick(methods=("grad_dot",)))
    index(indexed.workspace, MODEL, IndexOptions(group_dimension=16))
    indexed.drop("a.jsonl", indexed.record(1))
    report = _report(indexed, audit(indexed.workspace, MODEL))
    assert (report["trust"]["method"], report["trust"]["fidelity"]) == ("influence", None)


def test_requests_that_cannot_be_served_are_refused(tiny, prefect_server):
    tiny.register()
    ingest(tiny.workspace, MODEL)
    with pytest.raises(NotFoundError, match="no index of its training data"):
        calibrate(tiny.workspace, MODEL, _quick())
    index(tiny.workspace, MODEL)
    for options, error, message in (
        ({"methods": ("nothing",)}, UsageError, "no attribution method 'nothing'"),
        ({"budget_seconds": 1e-6}, UsageError, "budget of 0 s does not hold 18 runs of 2 steps"),
        ({"most_queries": 5}, UsageError, "5 queries cannot be split"),
        ({"learning_rate": 1e30, "steps": (40,)}, ModelError, "diverged"),
    ):
        with pytest.raises(error, match=message):
            calibrate(tiny.workspace, MODEL, _quick(**options))
    for options in ({"learning_rate": 0.0}, {"optimiser": "magic"}):
        with pytest.raises(UsageError, match="Further training with"):
            _quick(**options)
    assert _fidelities(tiny) == []


def test_a_budget_buys_enough_sets_then_longer_training_then_seeds():
    options, cost = CalibrateOptions(), RunCost(start=0.0, step=0.001, measurement=0.0)
    plans = [fit_to_budget(seconds, cost, options) for seconds in (1.1, 4.3, 20, 60, 3600)]
    assert plans[0] == ((10,), 30, 3)
    assert plans[1] == ((10, 50), 35, 2)
    assert plans[2] == ((10, 50, 200), 27, 3)
    assert plans[-1] == ((10, 50, 200), 64, 8)
    assert fit_to_budget(0.22, cost, options) == ((10,), 8, 2)
    for seconds, (steps, sets, seeds) in zip((1.1, 4.3, 20, 60), plans, strict=False):
        assert seeds * (sets + 1) * steps[-1] * 0.001 <= 0.85 * seconds + 1e-9
    with pytest.raises(UsageError, match="does not hold 18 runs of 10 steps") as caught:
        fit_to_budget(0.1, cost, options)
    assert "at least 0 s" in caught.value.remedy


def test_the_command_line_reads_amounts():
    from gradtrail.amounts import seconds_of, whole_numbers_of

    assert [seconds_of(text) for text in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]
    assert whole_numbers_of("10, 50,200") == (10, 50, 200)
    for ask, text in ((seconds_of, "soon"), (seconds_of, "0s"), (whole_numbers_of, "10;20"), (whole_numbers_of, "")):
        with pytest.raises(GradtrailError, match="is not a"):
            ask(text)
