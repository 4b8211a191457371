"""Calibration end to end: further training, fidelity in the ledger, method auto, horizons, weightings, the report."""

import json

import pytest
import torch

from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.fidelity.further_training import FurtherTraining, RunCost
from gradtrail.attribution.methods.registry import find_method
from gradtrail.commands.calibration import show_calibration, show_weightings
from gradtrail.errors import GradtrailError, ModelError, NotFoundError, UsageError
from gradtrail.flows.audit import audit
from gradtrail.flows.calibrate import calibrate
from gradtrail.flows.index import index
from gradtrail.lineage.read import listings, queries
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.calibrate.plans import Amounts, CalibrateOptions, fit_to_budget, fitted
from gradtrail.tasks.calibrate.queries import query_roles
from gradtrail.tasks.calibrated import resolve_audit
from gradtrail.tasks.govern.verifying import verify_workspace
from gradtrail.tasks.index.options import IndexOptions
from gradtrail.tasks.report.building import build_report
from gradtrail.tasks.report.reported_audits import reported_audit

MODEL = "tiny@champion"
COUNTED = {"sets": 8, "seeds": 2, "steps": (2, 6), "learning_rate": 0.1, "batch_size": 16}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Calibrated:
    """A project with an audit from before its calibration, the calibration, and outputs to audit after it."""

    def __init__(self, tiny):
        self.tiny = tiny
        tiny.drop("a.jsonl", *(tiny.record(number) for number in range(14)))
        self.before = audit(tiny.workspace, MODEL)
        self.outcome = calibrate(tiny.workspace, MODEL, _counted(leave_one_out=8, aspects=("source",)))
        self._next = 20

    def audited(self, **options):
        self._next += 1
        self.tiny.drop(f"{self._next}.jsonl", self.tiny.record(self._next))
        audit_id = self.tiny.record_audit(report=True, **options)
        return self.tiny.recorded(audit_id).audit, self.tiny.report(audit_id)["trust"]

    def resolved(self, **options):
        return resolve_audit.fn(self.tiny.workspace, "tiny/1", AuditOptions(**options))

    def weightings(self):
        with self.tiny.workspace.ledger().read() as connection:
            return [each for each in listings.weightings(connection) if each.group_weights]


@pytest.fixture(scope="module")
def calibrated(indexed_once, tmp_path_factory):
    return Calibrated(indexed_once.copy(tmp_path_factory.mktemp("calibrated")))


def _counted(**changes):
    return CalibrateOptions(**{**COUNTED, **changes})


def _fidelities(tiny):
    with tiny.workspace.ledger().read() as connection:
        [serving] = queries.model_version(connection, "tiny/1").checkpoint_ids
        return queries.fidelities(connection, serving)


def test_a_calibration_measures_methods_on_queries_that_nothing_was_fitted_or_chosen_on(calibrated):
    outcome = calibrated.outcome
    assert outcome.plan.query_source == "outputs"
    assert len(outcome.plan.query_ids) == 14
    assert outcome.trained == outcome.plan.runs == 2 * (1 + 8 + 8)
    roles = query_roles(14, ("further_training",), 0)
    parts = [roles.fitting, roles.choosing, roles.reporting]
    assert sorted(place for part in parts for place in part) == list(range(14))
    measured = {(each.method, each.parameters.get("relative_damping")) for each in outcome.methods}
    assert {("grad_dot", None), ("grad_cos", None), ("influence", 0.1), ("influence_global", 100.0)} <= measured
    assert all(figure.queries == len(roles.reporting) for each in outcome.methods for figure in each.by_steps)
    [chosen] = [each for each in outcome.methods if each.chosen]
    assert [figure.steps for figure in chosen.by_steps] == [2, 6]
    assert chosen.by_steps[-1].spearman > 0.5

    rows = _fidelities(calibrated.tiny)
    subset = [row for row in rows if row.metric == "fidelity_subset"]
    assert len(subset) == len(outcome.methods) * 2
    [best] = [row for row in rows if row.evidence["chosen"]]
    assert (best.method, best.parameters) == (chosen.method, chosen.parameters)
    assert (best.metric, best.value) == ("fidelity_subset", chosen.by_steps[-1].spearman)
    assert (best.evidence["queries_fitting"], best.evidence["queries_choosing"]) == (5, 5)


def test_leaving_single_examples_out_is_a_figure_of_its_own(calibrated):
    rows = _fidelities(calibrated.tiny)
    alone = [row for row in rows if row.metric == "fidelity_loo"]
    assert len(alone) == len(calibrated.outcome.methods) * 2
    assert not any(row.evidence["chosen"] or row.evidence["best_of"] for row in alone)
    assert {row.evidence["sets"] for row in alone} == {8}
    assert all(each.metric == "fidelity_loo" for one in calibrated.outcome.methods for each in one.singles_by_steps)
    _, trust = calibrated.audited()
    assert trust["fidelity"]["metric"] == "fidelity_subset"
    assert any("Against leaving out single examples, a figure of its own" in note for note in trust["fidelity_notes"])


def test_what_was_measured_is_printed(calibrated, capsys):
    show_calibration(calibrated.outcome, as_json=False)
    printed = capsys.readouterr().out
    [chosen] = [each for each in calibrated.outcome.methods if each.chosen]
    [marked] = [line for line in printed.split("fidelity_loo")[0].splitlines() if line.startswith("auto")]
    assert chosen.method in marked
    assert f"{chosen.by_steps[-1].spearman:.3f} ± {chosen.by_steps[-1].spearman_error:.3f}" in marked
    assert "ceiling" in printed
    show_calibration(calibrated.outcome, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert [each["method"] for each in said["methods"] if each["chosen"]] == [chosen.method]
    show_weightings(calibrated.weightings(), as_json=False)
    listed = capsys.readouterr().out
    assert "aspect:source" in listed
    assert "effective groups" in listed
    show_weightings(calibrated.weightings(), as_json=True)
    assert all(each["evidence"]["effective_groups"] >= 1 for each in json.loads(capsys.readouterr().out))
    show_weightings([], as_json=False)
    assert "No weighting was learned yet" in capsys.readouterr().out


def test_learned_weightings_stand_in_the_ledger_with_their_evidence(calibrated):
    learned = calibrated.weightings()
    assert {"further_training", "aspect:source"} <= {each.objective for each in learned}
    with calibrated.tiny.workspace.ledger().read() as connection:
        [serving] = queries.model_version(connection, "tiny/1").checkpoint_ids
    for each in learned:
        assert sum(each.group_weights.values()) / len(each.group_weights) == pytest.approx(1)
        said = each.evidence
        assert said["checkpoint_id"] == serving
        assert said["calibration_id"] == calibrated.outcome.plan.calibration_id
        assert {"level", "effective_groups", "held_out_gain", "method", "parameters", "further_steps"} <= set(said)
    fitted_to_effects = [each.evidence for each in learned if each.objective == "further_training"]
    assert all(said["spearman_learned"] > said["spearman_uniform"] for said in fitted_to_effects)


def test_audits_take_the_best_and_reports_show_its_figure(calibrated):
    tiny = calibrated.tiny
    assert tiny.report(calibrated.before.audit_id)["trust"]["method"] == "influence"
    before = reported_audit(tiny.workspace, calibrated.before.audit_id)
    assert build_report(tiny.workspace, before).trust.fidelity is None
    [chosen] = [each for each in calibrated.outcome.methods if each.chosen]
    pinned, trust = calibrated.audited()
    assert (trust["method"], trust["weighting"]["objective"]) == (chosen.method, chosen.weighting.objective)
    assert trust["fidelity"]["value"] == pytest.approx(chosen.by_steps[-1].spearman)
    assert any("random halves left out" in note for note in trust["fidelity_notes"])
    assert (pinned.method, pinned.weighting_id) == (chosen.method, chosen.weighting.weighting_id)
    assert {name: pinned.parameters[name] for name in chosen.parameters} == chosen.parameters
    assert not verify_workspace(tiny.workspace).problems
    for options in ({"damping": Damping(3.0)}, {"curvature": "empirical"}, {"every_checkpoint": True}):
        with pytest.raises(UsageError, match="Method auto takes"):
            calibrated.resolved(**options)


def test_a_weighting_is_chosen_by_name_without_a_new_index(calibrated):
    aspect = next(each for each in calibrated.weightings() if each.objective == "aspect:source")
    pinned, trust = calibrated.audited(weighting="aspect:source")
    assert trust["weighting"]["objective"] == "aspect:source"
    assert "where did the source of the output come from?" in trust["method_description"]
    assert trust["fidelity"]["metric"] == "fidelity_subset"
    by_id = calibrated.resolved(weighting=aspect.weighting_id[:10])
    assert by_id.options.weighting == aspect.weighting_id
    assert by_id.options.method == aspect.evidence["method"]
    uniform = calibrated.resolved(weighting="uniform")
    [best] = [each for each in calibrated.outcome.methods if "uniform" in each.best_of[6]]
    assert (uniform.options.weighting, uniform.options.method) == ("uniform", best.method)
    assert pinned.weighting_id == aspect.weighting_id
    assert pinned.index_ids == by_id.index_ids == uniform.index_ids
    assert calibrated.resolved(method="grad_dot").options.weighting == "uniform"
    for asked, message in (("aspect:author", "aspect 'author' was learned"), ("zzz", "no weighting whose id begins")):
        with pytest.raises(NotFoundError, match=message):
            calibrated.resolved(weighting=asked)


def test_a_horizon_is_asked_for_by_name_or_as_a_number(calibrated):
    for name, steps, question in (("now", 2, "how sensitive the model is now"), ("training", 6, "what shaped")):
        [best] = [each for each in calibrated.outcome.methods if "all" in each.best_of[steps]]
        chosen = calibrated.resolved(question=name)
        assert (chosen.options.method, chosen.options.weighting) in {
            (best.method, best.weighting.weighting_id),
            (best.method, best.weighting.objective),
        }
        [own] = [
            each
            for each in calibrated.outcome.methods
            if each.method == "influence" and "uniform method" in each.best_of[steps]
        ]
        found = calibrated.resolved(question=name, method="influence", weighting="uniform").options
        assert found.damping.relative == own.parameters["relative_damping"]
        _, trust = calibrated.audited(question=name)
        assert question in trust["method_description"]
        assert any(f"the horizon “{name}”" in note for note in trust["fidelity_notes"])
        assert trust["fidelity"]["evidence"]["steps"] == steps
    number = calibrated.resolved(horizon=0.5)
    assert (number.options.method, number.options.horizon) == ("horizon", 0.5)
    with pytest.raises(NotFoundError, match="horizon now of tiny/1 was never calibrated for method trak") as caught:
        calibrated.resolved(question="now", method="trak")
    assert "gradtrail calibrate tiny/1 --method trak --steps" in caught.value.remedy
    with pytest.raises(UsageError, match="The horizon now takes"):
        calibrated.resolved(question="now", method="influence", damping=Damping(3.0))


def test_audits_stay_on_the_index_that_was_calibrated(calibrated):
    tiny = calibrated.tiny
    [chosen] = [each for each in calibrated.outcome.methods if each.chosen]
    [other] = index(tiny.workspace, MODEL, IndexOptions(group_dimension=16))
    for options in ({}, {"method": "influence"}, {"question": "now"}, {"method": "trak"}):
        assert calibrated.resolved(**options).index_ids == chosen.index_ids
    by_hand = calibrated.resolved(index=other.index_id[:10])
    assert (by_hand.options.method, by_hand.index_ids) == ("influence", (other.index_id,))
    with pytest.raises(NotFoundError, match="no index whose id begins with zz"):
        calibrated.resolved(index="zz")


def test_a_killed_calibration_resumes_and_a_complete_one_trains_nothing(indexed, monkeypatch):
    trained = FurtherTraining.run
    count = 0

    def killed(self, seed, removed=frozenset()):
        nonlocal count
        count += 1
        if count > 7:
            raise KeyboardInterrupt
        return trained(self, seed, removed)

    options = _counted(methods=("grad_dot",))
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
    calibrate(
        indexed.workspace, MODEL, _counted(methods=("grad_cos",), weightings=(), steps=(2, 60), learning_rate=0.5)
    )
    policy = indexed.folder / "policy.toml"
    policy.write_text('[rules.fidelity]\nkind = "fidelity_below"\nseverity = "high"\nlimit = 1.0\n')
    indexed.drop("a.jsonl", indexed.record(1))
    outcome = audit(indexed.settings.model_copy(update={"policy": policy}).workspace(), MODEL)
    report = indexed.report(outcome.audit_id)
    assert report["trust"]["method"] == "grad_cos"
    assert [finding["rule"] for finding in report["findings"]] == ["fidelity"]
    assert any("measured on training examples" in note for note in report["trust"]["fidelity_notes"])
    assert any("The model is not at a minimum" in note for note in report["trust"]["fidelity_notes"])
    html = (indexed.workspace.reports / outcome.audit_id / "report.html").read_text()
    assert "indicative only" in html
    rows = _fidelities(indexed)
    assert {row.evidence["no_weights_because"] for row in rows} == {"No weights were fitted: none was asked for."}
    assert all(row.evidence["stationarity"]["loss_after"] < row.evidence["stationarity"]["loss_before"] for row in rows)


def test_requests_that_cannot_be_served_are_refused(ingested):
    tiny = ingested
    with pytest.raises(NotFoundError, match="no index of its training data"):
        calibrate(tiny.workspace, MODEL, _counted())
    index(tiny.workspace, MODEL)
    for options, error, message in (
        ({"methods": ("nothing",)}, UsageError, "no attribution method 'nothing'"),
        ({"sets": 0, "seeds": 0, "budget_seconds": 1e-6}, UsageError, "budget of 0 s does not hold 18 runs of 2 steps"),
        ({"most_queries": 5}, UsageError, "5 queries cannot be split"),
        ({"learning_rate": 1e30, "steps": (40,)}, ModelError, "diverged"),
        ({"aspects": ("author",)}, UsageError, "no attribute 'author' with more than one value"),
        ({"index": "zz"}, NotFoundError, "no index whose id begins with zz"),
    ):
        with pytest.raises(error, match=message):
            calibrate(tiny.workspace, MODEL, _counted(**options))
    assert _fidelities(tiny) == []
    with pytest.raises(NotFoundError, match="horizon training of tiny/1 was never calibrated"):
        resolve_audit.fn(tiny.workspace, "tiny/1", AuditOptions(question="training"))


def test_options_that_make_no_sense_are_refused():
    for options, message in (
        ({"learning_rate": 0.0}, "Further training with"),
        ({"optimiser": "magic"}, "Further training with"),
        ({"sets": 8, "seeds": 0}, "8 random halves left out with 0 seeds"),
        ({"sets": 4, "seeds": 2}, "4 random halves left out with 2 seeds"),
        ({"leave_one_out": 3}, "3 single examples are too few"),
    ):
        with pytest.raises(UsageError, match=message):
            _counted(**options)


def test_too_few_queries_for_three_sets_make_two_and_fit_no_weights():
    roles = query_roles(8, ("further_training",), 0)
    assert (roles.fitting, len(roles.choosing), len(roles.reporting)) == ((), 4, 4)
    assert roles.not_fitted_because == "No weights were fitted: 8 queries make two sets of 3, not three."
    assert query_roles(9, (), 0).not_fitted_because == "No weights were fitted: none was asked for."
    assert query_roles(9, ("further_training",), 0).not_fitted_because == ""
    with pytest.raises(UsageError, match="5 queries cannot be split into 2 parts"):
        query_roles(5, ("further_training",), 0)


def test_a_budget_buys_enough_sets_then_longer_training_then_seeds():
    options, cost = CalibrateOptions(), RunCost(start=0.0, step=0.001, measurement=0.0)
    plans = [fit_to_budget(seconds, cost, options) for seconds in (1.1, 4.3, 20, 60, 3600)]
    assert plans[0] == Amounts((10,), 30, 3)
    assert plans[1] == Amounts((10, 50), 35, 2)
    assert plans[2] == Amounts((10, 50, 200), 27, 3)
    assert plans[-1] == Amounts((10, 50, 200), 64, 8)
    assert fit_to_budget(0.22, cost, options) == Amounts((10,), 8, 2)
    for seconds, plan in zip((1.1, 4.3, 20, 60), plans, strict=False):
        assert plan.seeds * (plan.sets + 1) * plan.steps[-1] * 0.001 <= 0.85 * seconds + 1e-9
    with pytest.raises(UsageError, match="does not hold 18 runs of 10 steps") as caught:
        fit_to_budget(0.1, cost, options)
    assert "at least 0 s" in caught.value.remedy


def test_single_examples_have_a_share_of_the_budget_of_their_own():
    options, cost = CalibrateOptions(leave_one_out=20), RunCost(start=0.0, step=0.001, measurement=0.0)
    plan = fit_to_budget(60, cost, options)
    assert plan.single_examples == 20
    assert plan.seeds * (plan.sets + 1) * plan.steps[-1] * 0.001 <= 0.85 * 30
    assert plan.single_seeds * 21 * plan.steps[-1] * 0.001 <= 0.85 * 30
    with pytest.raises(UsageError, match="does not hold 60 runs of 10 steps") as caught:
        fit_to_budget(0.5, cost, options)
    assert "leave fewer examples out" in caught.value.remedy
    counted = fitted(cost, _counted(leave_one_out=8))
    assert counted == Amounts((2, 6), 8, 2, 8, 2)


def test_the_command_line_reads_amounts():
    from gradtrail.amounts import horizon_or_question, seconds_of, whole_numbers_of

    assert [seconds_of(text) for text in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]
    assert whole_numbers_of("10, 50,200") == (10, 50, 200)
    assert [horizon_or_question(text) for text in ("", "0.5", "now", "training")] == [
        (None, None),
        (0.5, None),
        (None, "now"),
        (None, "training"),
    ]
    for ask, text in (
        (seconds_of, "soon"),
        (seconds_of, "0s"),
        (whole_numbers_of, "10;20"),
        (whole_numbers_of, ""),
        (horizon_or_question, "later"),
        (horizon_or_question, "-1"),
        (horizon_or_question, "inf"),
    ):
        with pytest.raises(GradtrailError, match="is not a"):
            ask(text)


def test_a_figure_on_noise_is_not_chosen_and_not_printed_as_fidelity(indexed, capsys):
    # At a rate of 1e-9 float32 losses do not move: what differs between runs is rounding.
    indexed.drop("a.jsonl", *(indexed.record(number) for number in range(14)))
    outcome = calibrate(indexed.workspace, MODEL, _counted(learning_rate=1e-9))
    assert not any(each.chosen or any(each.best_of.values()) for each in outcome.methods)
    assert not any(each.weighting.group_weights for each in outcome.methods)
    show_calibration(outcome, as_json=False)
    assert "Fidelity could not be measured" in capsys.readouterr().out
    default = resolve_audit.fn(indexed.workspace, "tiny/1", AuditOptions()).options
    assert (default.method, default.weighting) == (find_method(None).name, "uniform")
    with pytest.raises(NotFoundError, match="could not be measured"):
        resolve_audit.fn(indexed.workspace, "tiny/1", AuditOptions(question="now"))
    report = indexed.report(indexed.record_audit(AuditOptions(method="grad_dot"), report=True))
    assert report["trust"]["fidelity"] is None
    assert report["trust"]["fidelity_not_measured"].startswith("Fidelity could not be measured: ")
    assert not [each for each in report["findings"] if "of at most" in each["message"]]
