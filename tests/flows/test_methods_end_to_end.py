"""Every method from index to report, through the flows, on a project with two checkpoints."""

import json

import pyarrow.parquet as pq
import pytest

from gradtrail.attribution.methods import METHODS
from gradtrail.errors import NotFoundError, StoreError, UsageError
from gradtrail.flows.audit import audit
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.lineage import queries
from gradtrail.tasks.audit_options import AuditOptions
from gradtrail.tasks.indexing import IndexOptions
from gradtrail.tasks.opened import method_indexes
from gradtrail.tasks.registering import TrainedWeights
from gradtrail.tasks.self_influences import write_self_influence

MODEL = "tiny@champion"


def _checkpoints(tiny, rates=(0.1, 0.05)):
    import torch

    torch.manual_seed(1)
    earlier = tiny.adapter().build_model().state_dict()
    torch.manual_seed(0)
    last = tiny.adapter().build_model().state_dict()
    return [TrainedWeights(10, rates[0], earlier), TrainedWeights(20, rates[1], last)]


@pytest.fixture
def ingested(tiny, prefect_server):
    tiny.register(checkpoints=_checkpoints(tiny))
    ingest(tiny.workspace, MODEL)
    return tiny


def _audited(tiny, number, **options):
    tiny.drop(f"{number}.jsonl", tiny.record(number))
    outcome = audit(tiny.workspace, MODEL, AuditOptions(**options))
    report = json.loads((tiny.workspace.reports / outcome.audit_id / "report.json").read_text())
    return outcome, report


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
        outcome, report = _audited(ingested, number, method=method)
        assert outcome.output_count == 1
        assert report["trust"]["method"] == method
        with ingested.workspace.ledger().read() as connection:
            recorded = queries.audit(connection, outcome.audit_id)
        index_ids[method] = recorded.index_ids
        parameters = {"top_k", "overall_top", "permutations", *_expected_parameters(method)}
        assert set(recorded.parameters) == parameters
    assert {method for method, ids in index_ids.items() if len(ids) == 2} == {"tracin_cp"}
    assert index_ids["ekfac"] == (eigen.index_id,)


def _expected_parameters(method):
    if method in {"grad_dot", "grad_cos"}:
        return set()
    if method == "tracin_cp":
        return {"learning_rates"}
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
        outcome, report = _audited(ingested, number, method=method)
        with ingested.workspace.ledger().read() as connection:
            assert queries.audit(connection, outcome.audit_id).index_ids == (built.index_id,)
        assert report["outputs"][0]["proponents"]


def test_methods_that_join_checkpoints_name_every_index(ingested):
    with pytest.raises(NotFoundError, match="no index of its training data"):
        audit(ingested.workspace, MODEL, AuditOptions(method="trak"))
    index(ingested.workspace, MODEL)
    for options in ({"method": "tracin_cp"}, {"method": "trak", "every_checkpoint": True}):
        with pytest.raises(NotFoundError, match="1 of 2 have none") as caught:
            audit(ingested.workspace, MODEL, AuditOptions(**options))
        assert "--every-checkpoint --group-dimension 256" in caught.value.remedy
    built = index(ingested.workspace, MODEL, every_checkpoint=True)
    for number, method in enumerate(("trak", "influence_global")):
        outcome, _ = _audited(ingested, number, method=method, every_checkpoint=True)
        with ingested.workspace.ledger().read() as connection:
            assert queries.audit(connection, outcome.audit_id).index_ids == tuple(each.index_id for each in built)
    with pytest.raises(UsageError, match="grad_dot scores one checkpoint"):
        method_indexes(ingested.workspace, "tiny/1", "grad_dot", True)


def test_ekfac_and_its_basis_say_what_is_missing(ingested):
    index(ingested.workspace, MODEL)
    with pytest.raises(NotFoundError, match="no index with eigen projection") as caught:
        audit(ingested.workspace, MODEL, AuditOptions(method="ekfac"))
    assert "gradtrail index tiny/1 --projection eigen" in caught.value.remedy
    index(ingested.workspace, MODEL, IndexOptions(projection="eigen"))
    for basis in ingested.workspace.curvatures.glob("basis-*.safetensors"):
        basis.unlink()
    ingested.drop("a.jsonl", ingested.record(1))
    with pytest.raises(StoreError, match=r"eigenbasis .* is gone"):
        audit(ingested.workspace, MODEL, AuditOptions(method="ekfac"))


def test_options_that_a_method_cannot_serve_are_refused_before_anything_is_recorded(ingested):
    index(ingested.workspace, MODEL)
    ingested.drop("a.jsonl", ingested.record(1))
    for options, message in (
        ({"method": "datainf", "curvature": "ggn"}, "observed targets, not on curvature ggn"),
        ({"method": "influence", "curvature": "hessian"}, "no curvature kind 'hessian'"),
        ({"method": "influence", "horizon": 3.0}, "influence has no horizon"),
        ({"method": "influence_global", "relative_damping": -1.0}, "Damping relative=-1"),
        ({"method": "cg", "curvature": "fisher"}, "no full curvature 'fisher'"),
        ({"method": "nothing"}, "no attribution method 'nothing'"),
    ):
        with pytest.raises(UsageError, match=message):
            audit(ingested.workspace, MODEL, AuditOptions(**options))
    with ingested.workspace.ledger().read() as connection:
        assert queries.audits(connection, "tiny/1") == []


def test_checkpoints_without_a_learning_rate_are_named(tiny, prefect_server):
    tiny.register(checkpoints=_checkpoints(tiny, rates=(None, 0.05)))
    ingest(tiny.workspace, MODEL)
    index(tiny.workspace, MODEL, every_checkpoint=True)
    tiny.drop("a.jsonl", tiny.record(1))
    with pytest.raises(UsageError, match="checkpoint at step 10 of tiny/1 was registered without a learning rate"):
        audit(tiny.workspace, MODEL, AuditOptions(method="tracin_cp"))


def test_bad_conditioning_reaches_the_report_and_the_command_line(ingested):
    index(ingested.workspace, MODEL)
    outcome, report = _audited(ingested, 1, method="influence_global", relative_damping=1e-9)
    assert any("badly conditioned (all groups together" in warning for warning in outcome.warnings)
    assert set(outcome.warnings) <= set(report["trust"]["left_out"])
    outcome, report = _audited(ingested, 2, method="horizon", horizon=0.5)
    assert outcome.warnings == ()
    assert "horizon of 0.5" in report["trust"]["damping"]


def test_self_influence_is_a_table_of_every_example_for_any_stored_method(ingested):
    index(ingested.workspace, MODEL, every_checkpoint=True)
    for method in ("influence", "trak", "tracin_cp"):
        options = AuditOptions(method).method_options
        found = write_self_influence(ingested.workspace, MODEL, options, 5)
        table = pq.read_table(found.path).to_pydict()
        assert table["rank"] == list(range(1, 41))
        assert sorted(table["example_id"]) == sorted(row["id"] for row in ingested.rows)
        assert table["self_influence"] == sorted(table["self_influence"], reverse=True)
        assert found.top == tuple(zip(table["example_id"][:5], table["self_influence"][:5], strict=True))
        assert found.attributes[found.top[0][0]]["licence"] == "CC0-1.0"
    assert write_self_influence(ingested.workspace, MODEL, options, 5) == found
    with pytest.raises(UsageError, match="too much for every training example"):
        write_self_influence(ingested.workspace, MODEL, AuditOptions("cg").method_options, 5)
