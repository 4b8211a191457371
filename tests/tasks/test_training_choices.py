"""How a calibration comes to optimiser, rate and sizes; what it refuses at once, and what it takes up again."""

import json
from dataclasses import replace

import pytest
from pydantic import TypeAdapter, ValidationError

from gradtrail.errors import DivergenceError, UsageError
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.lineage.read import queries
from gradtrail.tasks.calibrate.calibrations import (
    measure_fidelity,
    plan_calibration,
    refuse_calibration,
    train_further,
)
from gradtrail.tasks.calibrate.plans import (
    CalibrateOptions,
    calibrate_options,
    calibration_id,
    keep_plan,
    refuse_sizes_beyond,
)
from gradtrail.tasks.calibrate.runs import drawn_queries
from gradtrail.tasks.core.models import pinned_model
from gradtrail.tasks.core.watched import WatchedModel
from gradtrail.tasks.index.opened import open_index

COUNTED = {"sets": 8, "seeds": 2, "steps": (2, 6), "weightings": (), "methods": ("grad_dot",)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 41}, "A batch of 41 examples: the index has 40 training examples.*at most"),
        ({"leave_one_out": 41}, "41 single examples to leave out: the index has 40"),
        ({"device": "no-such"}, "Nothing can be trained on the device 'no-such'"),
        ({"methods": ("nothing",)}, "no attribution method 'nothing'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_is_collected(indexed, options, message):
    with pytest.raises(UsageError, match=message):
        refuse_calibration(indexed.workspace, "tiny/1", CalibrateOptions(**COUNTED | options))
    assert not (indexed.workspace.root / "calibrations").exists()


@pytest.mark.parametrize("rows", [1, 4])
def test_too_few_training_examples_for_different_halves_are_refused(rows):
    with pytest.raises(UsageError, match=f"8 different halves to leave out: the index has {rows} training example"):
        refuse_sizes_beyond(rows, CalibrateOptions(**COUNTED))
    refuse_sizes_beyond(5, CalibrateOptions(**COUNTED))


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"steps": (6, 2)},
        {"steps": ()},
        {"steps": (0,)},
        {"learning_rate": float("nan")},
        {"seed": -1},
        {"budget_seconds": 0.0},
        {"most_queries": 5},
    ],
)
def test_options_that_no_training_can_have_are_refused_where_they_are_said(options):
    with pytest.raises(UsageError):
        CalibrateOptions(**options)


def test_a_rate_is_searched_for_once_and_stands_in_the_evidence(indexed, capsys):
    options = CalibrateOptions(**COUNTED)
    plan = plan_calibration(indexed.workspace, "tiny/1", options)
    search = plan.training_evidence["rate_search"]
    assert plan.training_evidence["rate_from"] == "default"
    assert search["tried"][0]["learning_rate"] == 0.02
    assert (plan.optimiser, plan.batch_size, search["steps"]) == ("sgd", 40, 2)
    falling = [e["learning_rate"] for e in search["tried"] if e["loss_after"] < search["loss_before"]]
    assert plan.learning_rate == max(falling) > 0.02
    [line] = [each for each in capsys.readouterr().err.splitlines() if "mean training loss" in each]
    assert f"Further training by SGD at {plan.learning_rate:g}: mean training loss" in line
    again = plan_calibration(indexed.workspace, "tiny/1", options)
    assert (again, again.training_evidence["rate_search"]["tried"]) == (plan, list(search["tried"]))
    train_further(indexed.workspace, plan, options)
    measure_fidelity(indexed.workspace, plan, options)
    with indexed.workspace.ledger().read() as connection:
        [serving] = queries.model_version(connection, "tiny/1").checkpoint_ids
        rows = queries.fidelities(connection, serving)
    assert {row.evidence["learning_rate"] for row in rows} == {plan.learning_rate}
    assert all(row.evidence["rate_search"]["loss_before"] == search["loss_before"] for row in rows)


def test_what_the_run_logged_is_taken(tiny, prefect_server):
    tiny.register(parameters={"optim": "adamw_torch", "learning_rate": "0.003"})
    ingest(tiny.workspace, "tiny@champion")
    index(tiny.workspace, "tiny@champion")
    plan = plan_calibration(tiny.workspace, "tiny/1", CalibrateOptions(**COUNTED))
    assert (plan.optimiser, plan.learning_rate) == ("adamw", 0.003)
    assert plan.training_evidence["logged"] == {"optim": "adamw_torch", "learning_rate": "0.003"}
    assert len(plan.training_evidence["rate_search"]["tried"]) == 1
    given = plan_calibration(tiny.workspace, "tiny/1", CalibrateOptions(**COUNTED, learning_rate=0.1, batch_size=8))
    assert (given.optimiser, given.learning_rate, given.batch_size) == ("sgd", 0.1, 8)
    assert given.training_evidence == {}


def test_a_rate_at_which_longer_training_diverges_gives_way_to_a_smaller_one(indexed):
    options = CalibrateOptions(**COUNTED | {"steps": (2, 40)})
    found = plan_calibration(indexed.workspace, "tiny/1", options)
    [kept] = (indexed.workspace.root / "calibrations").glob("rate-*.json")
    said = json.loads(kept.read_bytes())
    said["tried"].append({"learning_rate": 1e30, "loss_after": 0.0})
    kept.write_text(json.dumps(said))
    plan = plan_calibration(indexed.workspace, "tiny/1", options)
    assert plan.learning_rate == found.learning_rate
    with pytest.raises(DivergenceError):
        plan_calibration(indexed.workspace, "tiny/1", replace(options, learning_rate=1e30))


def test_a_calibration_of_before_that_is_complete_is_not_trained_anew(indexed):
    options = CalibrateOptions(**COUNTED)
    made = plan_calibration(indexed.workspace, "tiny/1", options)
    before = options.as_before()
    pinned = pinned_model(indexed.workspace, "tiny/1")
    drawn = drawn_queries(indexed.workspace, pinned, open_index(indexed.workspace, pinned, made.index_id), options)
    contents = [f"{query.example_id}:{query.content_sha256}" for query in drawn.examples]
    old = replace(
        made,
        optimiser=None,
        learning_rate=None,
        batch_size=None,
        training_evidence={},
        calibration_id=calibration_id(made.index_id, contents, made.steps, made.threads, before),
    )
    keep_plan(indexed.workspace, old, before)
    assert plan_calibration(indexed.workspace, "tiny/1", options) == made
    assert train_further(indexed.workspace, old, options) == old.runs
    assert plan_calibration(indexed.workspace, "tiny/1", options) == old


def test_the_settings_say_how_watched_models_are_calibrated():
    table = {"reference": "m", "optimiser": "adam", "learning_rate": 0.01, "batch_size": 8, "steps": [5, 20]}
    found = calibrate_options(TypeAdapter(WatchedModel).validate_python(table))
    assert (found.optimiser, found.learning_rate, found.batch_size, found.steps) == ("adam", 0.01, 8, (5, 20))
    assert calibrate_options(WatchedModel("m")) == CalibrateOptions()
    for wrong in ({"optimiser": "magic"}, {"learning_rate": -1.0}, {"batch_size": -1}, {"steps": [20, 5]}):
        with pytest.raises(ValidationError, match="Calibrations of m"):
            TypeAdapter(WatchedModel).validate_python(table | wrong)
