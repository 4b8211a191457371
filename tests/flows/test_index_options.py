"""How an index is stored and measured, through the flows: types, budgets, shards, and what has no gradient."""

import math
import shutil
import statistics
from dataclasses import replace

import lancedb
import pytest
import torch

from gradtrail.attribution.features.plan import FeatureSettings, plan_features, plan_from_config
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.gradients.shards import Shard
from gradtrail.errors import DataError, LedgerError, StoreError, UsageError
from gradtrail.flows.audit import audit
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.lineage.events.revisions import record_index_revision
from gradtrail.lineage.read import queries
from gradtrail.lineage.read.revisions import index_revisions
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.core.models import pinned_model
from gradtrail.tasks.govern.verifying import verify_workspace
from gradtrail.tasks.index.options import IndexOptions

pytestmark = pytest.mark.ci  # an index by each option, and processes that share one

MODEL = "tiny@champion"


def _scores(tiny, record_id):
    tiny.drop(f"{record_id}.jsonl", tiny.record(1, record_id=record_id))
    details = tiny.recorded(tiny.record_audit(method="grad_dot", top_k=40))
    return {each.example_id: each.score for each in details.attributions}


def test_an_audit_of_an_int8_index_agrees_with_one_of_float32(ingested, capsys):
    index(ingested.workspace, MODEL, IndexOptions())
    whole = _scores(ingested, "first")
    [small] = index(ingested.workspace, MODEL, IndexOptions(dtype="int8"))
    assert "40 examples, 51 numbers each as int8: about 0.1 MB on disk" in capsys.readouterr().err
    rounded = _scores(ingested, "second")
    assert small.new
    largest = max(abs(score) for score in whole.values())
    assert whole.keys() == rounded.keys()
    assert whole != rounded
    assert all(math.isclose(rounded[name], whole[name], abs_tol=0.01 * largest) for name in whole)
    pairs = [(whole[name], rounded[name]) for name in whole]
    assert statistics.correlation(*zip(*pairs, strict=True)) >= 0.999
    assert list(verify_workspace(ingested.workspace).problems) == []


_FROZEN_BODY = """

class Adapter(Adapter):
    def build_model(self):
        model = super().build_model()
        model[0].requires_grad_(False)
        return model
"""


def test_frozen_layers_are_not_measured_and_the_report_names_them(tiny, prefect_server):
    module = tiny.folder / f"{tiny.module}.py"
    module.write_text(module.read_text() + _FROZEN_BODY)
    tiny.register()
    ingest(tiny.workspace, MODEL)
    [built] = index(tiny.workspace, MODEL)
    with tiny.workspace.ledger().read() as connection:
        recorded = queries.index(connection, built.index_id)
    assert [group["name"] for group in recorded.feature_config["groups"]] == ["2"]
    coverage = recorded.coverage
    assert (coverage.frozen, coverage.left_out, coverage.parameter_share) == (("0.weight", "0.bias"), (), 1.0)
    tiny.drop("a.jsonl", tiny.record(1))
    audit_id = tiny.record_audit(report=True)
    [said] = tiny.report(audit_id)["trust"]["left_out"]
    assert "Frozen parameters" in said
    assert "0.weight, 0.bias" in said
    page = (tiny.workspace.reports / audit_id / "report.html").read_text()
    assert "21 of 21 that training moves" in page
    assert "not covered:" not in page


def test_an_adapter_says_for_every_index_what_is_left_out_and_what_autograd_measures(ingested, monkeypatch):
    pinned = pinned_model(ingested.workspace, "tiny/1")
    monkeypatch.setattr(type(pinned.adapter), "fallback_for", ("2",))
    monkeypatch.setattr(type(pinned.adapter), "exclude", ["0"])
    plan = IndexOptions(exclude=("0", "none*")).plan(pinned)
    assert [group.name for group in plan.groups] == ["2.weight", "2.bias"]
    assert plan.uncovered == ("0.weight", "0.bias")
    assert (plan.config()["exclude"], plan.config()["fallback_for"]) == (["0", "none*"], ["2"])
    assert plan_from_config(pinned.load(pinned.serving), plan.config()).groups == plan.groups
    monkeypatch.setattr(type(pinned.adapter), "exclude", "0*")
    with pytest.raises(UsageError, match=r"has exclude = '0\*'. Make it a tuple"):
        IndexOptions().plan(pinned)


def test_shards_fill_an_index_that_a_last_run_completes(ingested):
    [whole] = index(ingested.workspace, MODEL, IndexOptions())
    options = [IndexOptions(seed=1, shard=f"{number}/3") for number in (3, 1, 2)]
    written = []
    for option in options:
        [part] = index(ingested.workspace, MODEL, option)
        assert not part.complete
        written.append(part.rows_written)
    assert sorted(written) == [13, 13, 14]
    [last] = index(ingested.workspace, MODEL, IndexOptions(seed=1))
    assert (last.complete, last.rows_written, last.rows_resumed) == (True, 0, 40)
    assert last.index_id != whole.index_id
    [without] = index(ingested.workspace, MODEL, IndexOptions(exclude=("0",)))
    assert without.rows_written == 40
    with ingested.workspace.ledger().read() as connection:
        assert queries.index(connection, without.index_id).coverage.uncovered == ("0.weight", "0.bias")
    with pytest.raises(UsageError, match="no shard 4/3"):
        index(ingested.workspace, MODEL, IndexOptions(shard="4/3"))


def test_workers_fill_an_index_with_the_rows_that_one_process_measures(ingested, capsys):
    [shared] = index(ingested.workspace, MODEL, IndexOptions(seed=1, workers=2))
    assert "in each of 2 processes" in capsys.readouterr().err
    assert (shared.complete, shared.rows_written, shared.rows_resumed) == (True, 40, 0)
    adapter = ingested.adapter()
    torch.manual_seed(0)
    model = adapter.build_model()
    expected = compute_features(
        adapter, model, adapter.training_data(), plan_features(model, FeatureSettings(256, seed=1))
    )
    wanted = dict(zip(expected.example_ids, expected.vectors, strict=True))
    table = ingested.workspace.gradients().existing(shared.index_id)
    found = {
        example_id: torch.tensor(vector)
        for batch in table.stream()
        for example_id, vector in zip(batch.example_ids, batch.vectors, strict=True)
    }
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-5, atol=1e-7) for name in wanted)
    assert list(verify_workspace(ingested.workspace).problems) == []


def test_each_worker_has_its_part_of_a_shard_of_the_budget_and_of_the_accelerators(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    options = IndexOptions(shard="2/3", workers=4, memory_budget=800, device="cuda")
    own = [options.for_worker(number) for number in (1, 2, 3, 4)]
    assert [(each.shard, each.device) for each in own] == [
        ("2/12", "cuda:0"),
        ("5/12", "cuda:1"),
        ("8/12", "cuda:0"),
        ("11/12", "cuda:1"),
    ]
    assert {(each.memory_budget, each.workers) for each in own} == {(200, 1)}
    with pytest.raises(UsageError, match="by 0 workers"):
        IndexOptions(workers=0)
    held = [place for each in own for place in range(60) if Shard.of_text(each.shard).holds(place)]
    assert sorted(held) == [place for place in range(60) if Shard(2, 3).holds(place)]


def test_budgets_that_are_too_small_are_refused_before_anything_is_measured(ingested):
    with pytest.raises(UsageError, match="memory budget of 0 MB is too small"):
        index(ingested.workspace, MODEL, IndexOptions(memory_budget=10))
    with pytest.raises(UsageError, match="total dimension of 3 is too small"):
        index(ingested.workspace, MODEL, IndexOptions(total_dimension=3))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])  # two fresh processes, twice
def test_a_gradient_beyond_half_precision_stops_the_pass_and_names_the_example(workers, tiny, prefect_server):
    # The labels of three rows in turn are the three classes: the model is wrong about at least two of them.
    for number in (6, 7, 8):
        tiny.rows[number]["inputs"] = [1e8, -1e8, 1e8, 1e8]
    tiny.rows[9]["inputs"] = [math.nan] * 4
    tiny.write()
    tiny.register()
    ingest(tiny.workspace, MODEL)
    with pytest.raises(DataError, match=r"gradient of example row-[678] reaches"):
        index(tiny.workspace, MODEL, IndexOptions(dtype="float16", workers=workers))
    [as_int8] = index(tiny.workspace, MODEL, IndexOptions(dtype="int8", workers=workers))
    assert (as_int8.rows_written, as_int8.quarantined) == (39, 1)


def test_lost_gradients_are_measured_again_under_the_same_index(ingested):
    options = IndexOptions(dtype="float16")
    [built] = index(ingested.workspace, MODEL, options)
    before = _scores(ingested, "first")
    shutil.rmtree(ingested.home / "gradients")
    with pytest.raises(StoreError, match="is gone") as refused:
        _scores(ingested, "second")
    assert (
        "measure it again: gradtrail index tiny/1 --group-dimension 256 --seed 0 --dtype float16."
        in refused.value.remedy
    )
    [again] = index(ingested.workspace, MODEL, options)
    assert (again.index_id, again.new, again.remeasured, again.rows_written) == (built.index_id, True, True, 40)
    ingested.drop("third.jsonl", ingested.record(1, record_id="third"))
    details = ingested.recorded(audit(ingested.workspace, MODEL, AuditOptions(method="grad_dot", top_k=40)).audit_id)
    assert {output_id for output_id, _ in details.audit.outputs} == {"inbox:second", "inbox:third"}
    for output_id, _ in details.audit.outputs:
        after = {each.example_id: each.score for each in details.attributions if each.output_id == output_id}
        assert after == pytest.approx(before, rel=1e-5)
    assert not verify_workspace(ingested.workspace).problems
    [nothing] = index(ingested.workspace, MODEL, options)
    assert not nothing.new


def test_gradients_that_came_out_differently_are_recorded_as_a_revision(ingested):
    [built] = index(ingested.workspace, MODEL, IndexOptions())
    ledger, store = ingested.workspace.ledger(), ingested.workspace.gradients()
    shutil.rmtree(store.existing(built.index_id).uri)
    # Two passes, as after a kill, pin another version than one.
    index(ingested.workspace, MODEL, IndexOptions(shard="1/2"))
    [again] = index(ingested.workspace, MODEL, IndexOptions())
    assert (again.remeasured, again.rows_resumed, again.rows_written) == (True, 20, 20)
    with ledger.read() as connection:
        recorded = queries.index(connection, built.index_id)
        [(index_id, event, _)] = index_revisions(connection)
    seal = store.existing(built.index_id).seal_record()
    assert index_id == built.index_id
    assert (seal.version, seal.rows_sha256) == (recorded.table_version, recorded.rows_sha256)
    verification = verify_workspace(ingested.workspace)
    assert not verification.problems
    said = f"Index {built.index_id[:12]} was measured again, by event {event}: its gradients were lost."
    assert said in verification.notes
    fewer = replace(recorded, coverage=replace(recorded.coverage, indexed_examples=39))
    with pytest.raises(LedgerError, match="does not hold the examples") as refused:
        record_index_revision(ledger, fewer, "lost")
    assert "--seed 1" in refused.value.remedy


def test_gradients_that_somebody_replaced_are_not_taken_for_those_that_were_recorded(ingested):
    [built] = index(ingested.workspace, MODEL, IndexOptions())
    table = ingested.workspace.gradients().existing(built.index_id)
    seals = lancedb.connect(ingested.workspace.gradients_uri).open_table("seals")
    seals.update(where=f"index_id = '{built.index_id}'", values={"rows_sha256": "0" * 64})
    with pytest.raises(StoreError, match="are not those that the ledger recorded"):
        index(ingested.workspace, MODEL, IndexOptions())
    shutil.rmtree(table.uri)
    assert index(ingested.workspace, MODEL, IndexOptions())[0].remeasured
    assert not verify_workspace(ingested.workspace).problems


def test_a_lost_eigenbasis_is_fitted_again(ingested):
    options = IndexOptions(projection="eigen")
    [built] = index(ingested.workspace, MODEL, options)
    [basis] = ingested.workspace.curvatures.glob("basis-*.safetensors")
    basis.unlink()
    [again] = index(ingested.workspace, MODEL, options)
    assert basis.is_file() or again.index_id != built.index_id
