"""Every method from index to report, through the flows, on a project with two checkpoints."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.vectors import model_vectors
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.fidelity.effects import Effects
from gradtrail.attribution.methods.rules import METHODS
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.scoring.joint import scoring_pass
from gradtrail.errors import NotFoundError, StoreError, UsageError
from gradtrail.flows.audit import audit
from gradtrail.flows.calibrate import calibrate
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.lineage.read import queries
from gradtrail.nouns import Weighting
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.audit.self_influences import write_self_influence
from gradtrail.tasks.calibrate.candidate_methods import Predictor, candidates
from gradtrail.tasks.calibrate.plans import CalibrateOptions
from gradtrail.tasks.calibrate.runs import drawn_queries
from gradtrail.tasks.core.models import pinned_model
from gradtrail.tasks.index.opened import method_indexes, open_index
from gradtrail.tasks.index.options import IndexOptions
from gradtrail.tasks.ingest.registering import TrainedWeights

pytestmark = pytest.mark.ci  # a whole audit by each method; tests/attribution has them one by one

MODEL = "tiny@champion"


def _checkpoints(tiny, rates=(0.1, 0.05)):
    torch.manual_seed(1)
    earlier = tiny.adapter().build_model().state_dict()
    torch.manual_seed(0)
    last = tiny.adapter().build_model().state_dict()
    return [TrainedWeights(10, rates[0], earlier), TrainedWeights(20, rates[1], last)]


@pytest.fixture(scope="module")
def ingested_once(tiny_project, tmp_path_factory, migrated_mlflow, prefect_server):
    """With two checkpoints; copy it, never change it."""
    tiny = tiny_project(tmp_path_factory.mktemp("ingested"), migrated_mlflow)
    tiny.register(checkpoints=_checkpoints(tiny))
    ingest(tiny.workspace, MODEL)
    return tiny


@pytest.fixture(scope="module")
def indexed_once(ingested_once, tmp_path_factory):
    """With an index of each checkpoint, and what they are; copy it, never change it."""
    tiny = ingested_once.copy(tmp_path_factory.mktemp("indexed"))
    tiny.indexes = tuple(each.index_id for each in index(tiny.workspace, MODEL, every_checkpoint=True))
    return tiny


def _audited(tiny, number, **options):
    tiny.drop(f"{number}.jsonl", tiny.record(number))
    return tiny.recorded(tiny.record_audit(**options))


def _reported(tiny, number, **options):
    tiny.drop(f"{number}.jsonl", tiny.record(number))
    audit_id = tiny.record_audit(report=True, **options)
    return tiny.recorded(audit_id), tiny.report(audit_id)


@pytest.mark.slow
def test_every_method_makes_a_report(ingested):
    index(ingested.workspace, MODEL, IndexOptions(), every_checkpoint=True)
    [eigen] = index(ingested.workspace, MODEL, IndexOptions(projection="eigen"))
    [again] = index(ingested.workspace, MODEL, IndexOptions(projection="eigen"))
    assert (again.index_id, again.new) == (eigen.index_id, False)
    index_ids = {}
    for number, method in enumerate(METHODS):
        if method == "tracin_cp":
            index(ingested.workspace, MODEL, IndexOptions(projection="eigen"), every_checkpoint=True)
        ingested.drop(f"{number}.jsonl", ingested.record(number))
        outcome = audit(ingested.workspace, MODEL, AuditOptions(method=method))
        assert outcome.output_count == 1
        assert ingested.report(outcome.audit_id)["trust"]["method"] == method
        recorded = ingested.recorded(outcome.audit_id).audit
        index_ids[method] = recorded.index_ids
        parameters = {"top_k", "overall_top", "permutations", *_expected_parameters(method)}
        assert set(recorded.parameters) == parameters
    assert {method for method, ids in index_ids.items() if len(ids) == 2} == {"tracin_cp", "unrolled"}
    assert index_ids["ekfac"] == (eigen.index_id,)


def _expected_parameters(method):
    if method in {"grad_dot", "grad_cos"}:
        return set()
    if method == "tracin_cp":
        return {"learning_rates"}
    if method == "unrolled":
        return {"curvature", "segments"}
    damped = {"curvature", "relative_damping", "absolute_damping"}
    return damped | ({"tolerance", "most_products"} if method in {"cg", "lissa"} else set())


@pytest.mark.parametrize(
    ("options", "methods"),
    [
        (IndexOptions(dtype="float16", projection="eigen"), ("ekfac", "cg")),
        (IndexOptions(dtype="int8"), ("influence_global", "datainf")),
    ],
    ids=["float16 in an eigenbasis", "int8"],
)
def test_smaller_stored_types_serve_methods_that_read_the_rows_again(ingested, options, methods):
    [built] = index(ingested.workspace, MODEL, options)
    for number, method in enumerate(methods):
        details = _audited(ingested, number, method=method)
        assert details.audit.index_ids == (built.index_id,)
        assert [each for each in details.attributions if each.side == "proponent"]


def test_methods_that_join_checkpoints_name_every_index(ingested):
    with pytest.raises(NotFoundError, match="no index of its training data"):
        audit(ingested.workspace, MODEL, AuditOptions(method="trak"))
    index(ingested.workspace, MODEL)
    for options in ({"method": "tracin_cp"}, {"method": "trak", "every_checkpoint": True}):
        with pytest.raises(NotFoundError, match="1 of 2 have none") as caught:
            ingested.record_audit(**options)
        assert "--every-checkpoint --group-dimension 256" in caught.value.remedy
    built = index(ingested.workspace, MODEL, every_checkpoint=True)
    for number, method in enumerate(("trak", "influence_global")):
        details = _audited(ingested, number, method=method, every_checkpoint=True)
        assert details.audit.index_ids == tuple(each.index_id for each in built)
    with pytest.raises(UsageError, match="grad_dot scores one checkpoint"):
        method_indexes(ingested.workspace, "tiny/1", "grad_dot", True)


def test_training_is_unrolled_over_its_checkpoints_from_the_last_to_the_first(indexed):
    built = indexed.indexes
    [eigen] = index(indexed.workspace, MODEL, IndexOptions(projection="eigen"))
    details, report = _reported(indexed, 1, method="unrolled")
    recorded = details.audit
    assert recorded.index_ids == built
    assert recorded.parameters["segments"] == [0.1 * 10, 0.05 * 10]
    assert "the segments of training take its place, 1, 0.5 long" in report["trust"]["damping"]

    pinned = pinned_model(indexed.workspace, "tiny/1")
    opened = [open_index(indexed.workspace, pinned, each) for each in built]
    rows = [GradientBatch.joined(list(each.rows())) for each in opened]
    moments = []
    for each in opened:
        pieces = model_vectors(
            pinned.adapter, pinned.load(each.checkpoint), each.examples(pinned), each.plan, kind="fisher", batch_size=64
        )
        moments.append(sum(part.double().T @ part.double() for _, part in pieces.pieces) / len(rows[0].example_ids))
    at_the_end = opened[-1].queries([recorded.outputs[0][0]], "emitted").vectors.double()
    expected = torch.zeros(len(rows[0].example_ids), dtype=torch.float64)
    for place, length in ((1, 0.5), (0, 1.0)):
        # ∫ exp(−tF) dt from 0 to τ, as a sum: no eigendecomposition.
        times = (torch.arange(4000, dtype=torch.float64) + 0.5) * length / 4000
        step = torch.linalg.matrix_exp(-times[0] * 2 * moments[place])
        moved, total = torch.linalg.matrix_exp(-times[0] * moments[place]), torch.zeros_like(moments[place])
        for _ in times:
            total += moved * length / 4000
            moved = moved @ step
        expected += (rows[place].vectors.double() @ total @ at_the_end.T).squeeze(1)
        at_the_end = at_the_end @ torch.linalg.matrix_exp(-length * moments[place])
    by_id = dict(zip(rows[0].example_ids, expected.tolist(), strict=True))
    assert {each.example_id: each.score for each in details.attributions} == pytest.approx(
        {each.example_id: by_id[each.example_id] for each in details.attributions}, rel=1e-4, abs=1e-7
    )
    with pytest.raises(NotFoundError, match="no index with random projection, which unrolled needs"):
        indexed.record_audit(method="unrolled", index=eigen.index_id)


def test_ekfac_and_its_basis_say_what_is_missing(ingested):
    index(ingested.workspace, MODEL)
    with pytest.raises(NotFoundError, match="no index with eigen projection") as caught:
        ingested.record_audit(method="ekfac")
    assert "gradtrail index tiny/1 --projection eigen" in caught.value.remedy
    index(ingested.workspace, MODEL, IndexOptions(projection="eigen"))
    for basis in ingested.workspace.curvatures.glob("basis-*.safetensors"):
        basis.unlink()
    ingested.drop("a.jsonl", ingested.record(1))
    with pytest.raises(StoreError, match=r"eigenbasis .* is gone"):
        ingested.record_audit(method="ekfac")


def test_options_that_a_method_cannot_serve_are_refused_before_anything_is_recorded(indexed):
    indexed.drop("a.jsonl", indexed.record(1))
    for options, message in (
        ({"method": "datainf", "curvature": "ggn"}, "observed targets, not on curvature ggn"),
        ({"method": "influence", "curvature": "hessian"}, "no curvature kind 'hessian'"),
        ({"method": "influence", "horizon": 3.0}, "influence has no horizon"),
        ({"method": "influence_global", "relative_damping": -1.0}, "Damping relative=-1"),
        ({"method": "cg", "curvature": "fisher"}, "no full curvature 'fisher'"),
        ({"method": "nothing"}, "no attribution method 'nothing'"),
    ):
        with pytest.raises(UsageError, match=message):
            indexed.record_audit(AuditOptions.from_json(options))
    with pytest.raises(UsageError, match=message):
        audit(indexed.workspace, MODEL, AuditOptions.from_json(options))
    with indexed.workspace.ledger().read() as connection:
        assert queries.audits(connection, "tiny/1") == []


def test_checkpoints_without_a_learning_rate_are_named(tiny, prefect_server):
    tiny.register(checkpoints=_checkpoints(tiny, rates=(None, 0.05)))
    ingest(tiny.workspace, MODEL)
    index(tiny.workspace, MODEL, every_checkpoint=True)
    tiny.drop("a.jsonl", tiny.record(1))
    for method in ("tracin_cp", "unrolled"):
        with pytest.raises(UsageError, match="checkpoint at step 10 of tiny/1 was registered without a learning rate"):
            tiny.record_audit(method=method)


def test_bad_conditioning_reaches_the_report_and_the_command_line(indexed):
    indexed.drop("1.jsonl", indexed.record(1))
    outcome = audit(indexed.workspace, MODEL, AuditOptions(method="influence_global", damping=Damping(1e-9)))
    assert any("badly conditioned (all groups together" in warning for warning in outcome.warnings)
    assert set(outcome.warnings) <= set(indexed.report(outcome.audit_id)["trust"]["left_out"])
    details, report = _reported(indexed, 2, method="horizon", horizon=0.5)
    assert details.method_notes["warnings"] == []
    assert "horizon of 0.5" in report["trust"]["damping"]


def test_self_influence_is_a_table_of_every_example_for_any_stored_method(indexed):
    for method in ("influence", "trak", "tracin_cp"):
        spec = MethodSpec(method)
        found = write_self_influence(indexed.workspace, MODEL, spec, 5)
        table = pq.read_table(found.path).to_pydict()
        assert table["rank"] == list(range(1, 41))
        assert sorted(table["example_id"]) == sorted(row["id"] for row in indexed.rows)
        assert table["self_influence"] == sorted(table["self_influence"], reverse=True)
        assert found.top == tuple(zip(table["example_id"][:5], table["self_influence"][:5], strict=True))
        assert found.attributes[found.top[0][0]]["licence"] == "CC0-1.0"
    assert write_self_influence(indexed.workspace, MODEL, spec, 5) == found
    for method, message in (("cg", "too much for every training example"), ("unrolled", "carries queries")):
        with pytest.raises(UsageError, match=message):
            write_self_influence(indexed.workspace, MODEL, MethodSpec(method), 5)


def test_a_calibration_measures_every_checkpoint_beside_the_serving_one(ingested):
    index(ingested.workspace, MODEL)
    ingested.drop("a.jsonl", *(ingested.record(number) for number in range(14)))
    asked = CalibrateOptions(
        methods=("grad_dot", "influence_global"), sets=8, seeds=2, steps=(2, 6), every_checkpoint=True, batch_size=16
    )
    with pytest.raises(NotFoundError, match="1 of 2 have none"):
        calibrate(ingested.workspace, MODEL, asked)
    assert not list((ingested.workspace.root / "calibrations").rglob("*.npy"))  # refused before anything is trained
    built = tuple(each.index_id for each in index(ingested.workspace, MODEL, every_checkpoint=True))
    outcome = calibrate(ingested.workspace, MODEL, asked)
    scored = {(each.method, each.index_ids) for each in outcome.methods}
    assert scored == {("grad_dot", built[1:]), ("influence_global", built[1:]), ("influence_global", built)}

    joined = next(each for each in outcome.methods if each.index_ids == built and not each.weighting.group_weights)
    damping = joined.parameters["relative_damping"]
    options = {"every_checkpoint": True, "weighting": "uniform", "damping": Damping(damping)}
    _, report = _reported(ingested, 20, method="influence_global", **options)
    assert report["trust"]["fidelity"]["value"] == pytest.approx(joined.by_steps[-1].spearman)
    [chosen] = [each for each in outcome.methods if each.chosen]
    assert _audited(ingested, 21).audit.index_ids == chosen.index_ids


def test_a_calibration_finds_how_far_training_went_and_audits_take_it(indexed):
    indexed.drop("a.jsonl", *(indexed.record(number) for number in range(14)))
    asked = CalibrateOptions(
        methods=("unrolled",), sets=8, seeds=2, steps=(2, 6), every_checkpoint=True, batch_size=16, weightings=()
    )
    outcome = calibrate(indexed.workspace, MODEL, asked)
    lengths = sorted(each.parameters["horizon"] for each in outcome.methods)
    assert lengths == pytest.approx([0.015, 0.15, 1.5, 15.0])
    [chosen] = [each for each in outcome.methods if each.chosen]
    details, report = _reported(indexed, 20)
    recorded = details.audit
    assert (recorded.method, recorded.index_ids) == ("unrolled", indexed.indexes)
    assert recorded.parameters["segments"] == chosen.parameters["segments"]
    assert sum(recorded.parameters["segments"]) == pytest.approx(chosen.parameters["horizon"])
    assert report["trust"]["fidelity"]["value"] == pytest.approx(chosen.by_steps[-1].spearman)


def test_checkpoints_of_unknown_length_are_not_unrolled_unasked(tiny, prefect_server):
    tiny.register(checkpoints=[replace(each, step=each.step - 10) for each in _checkpoints(tiny)])
    ingest(tiny.workspace, MODEL)
    [*_, serving] = index(tiny.workspace, MODEL, every_checkpoint=True)
    pinned = pinned_model(tiny.workspace, "tiny/1")
    found = candidates(tiny.workspace, pinned, serving.index_id, CalibrateOptions(every_checkpoint=True))
    assert "horizon" in {each.spec.method for each in found}
    assert "unrolled" not in {each.spec.method for each in found}
    tiny.drop("a.jsonl", tiny.record(1))
    with pytest.raises(UsageError, match="step 0 of tiny/1 follows one at step 0"):
        tiny.record_audit(method="unrolled")


@pytest.mark.parametrize("method", ["influence", "unrolled"])
def test_effects_foretold_by_every_checkpoint_are_the_scores_an_audit_would_give(indexed, method):
    pinned = pinned_model(indexed.workspace, "tiny/1")
    asked = CalibrateOptions(methods=(method,), every_checkpoint=True)
    [serving] = method_indexes(indexed.workspace, "tiny/1", "grad_dot")
    opened = open_index(indexed.workspace, pinned, serving)
    queried = drawn_queries(indexed.workspace, pinned, opened, asked)
    ids = [example.example_id for example in opened.examples(pinned)]
    halves = (frozenset(ids[::2]), frozenset(ids[1::2]))
    none = np.zeros((2, 1, 2, len(queried.examples)))
    effects = Effects("subset", halves, tuple(each.example_id for each in queried.examples), (1,), none)
    predictor = Predictor(indexed.workspace, pinned, queried, effects, None, asked)
    [joined, *_] = [each for each in candidates(indexed.workspace, pinned, serving, asked) if len(each.index_ids) == 2]
    predicted = predictor.predict(joined)
    scored = {}
    for rows, scores in scoring_pass(predicted.members, "sum").batches():
        scored |= dict(zip(rows.example_ids, scores.T, strict=True))
    expected = [sum(scored[example_id] for example_id in half) for half in halves]
    np.testing.assert_allclose(predicted.effects(Weighting()), expected, rtol=1e-4)
