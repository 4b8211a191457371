"""Which layers carried an audit's attributions: from the scores to the ledger, SQL and the reports."""

import json
from collections import defaultdict

import pytest
import torch

from gradtrail.lineage.read import queries
from gradtrail.lineage.sql.answering import run_sql
from gradtrail.lineage.verify.verifying import verify_ledger
from gradtrail.tasks import ingesting
from gradtrail.tasks.audit.audited_model import AuditedModel
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.auditing import score_outputs
from gradtrail.tasks.collecting import collect_outputs
from gradtrail.tasks.index.opened import method_indexes
from gradtrail.tasks.index.options import IndexOptions
from gradtrail.tasks.indexing import build_index
from gradtrail.tasks.ingest.registering import TrainedWeights
from gradtrail.tasks.measuring import measure_outputs
from gradtrail.tasks.report.reported_audits import ShownAudit
from gradtrail.tasks.reporting import write_audit_report


@pytest.fixture
def indexed(tiny):
    """Two checkpoints, ingested and indexed, by what the tasks do and without a scheduler."""
    torch.manual_seed(1)
    earlier = tiny.adapter().build_model().state_dict()
    torch.manual_seed(0)
    last = tiny.adapter().build_model().state_dict()
    tiny.register(checkpoints=[TrainedWeights(10, 0.1, earlier), TrainedWeights(20, 0.05, last)])
    version = ingesting.resolve_version.fn(tiny.workspace, "tiny@champion")
    adapter = ingesting.choose_adapter.fn(tiny.workspace, version, "")
    files = ingesting.fetch_files.fn(tiny.workspace, version)
    checkpoints = ingesting.store_checkpoints.fn(tiny.workspace, version, files, adapter, False)
    dataset = ingesting.store_manifest.fn(tiny.workspace, version, files, adapter)
    ingesting.record_model_version.fn(tiny.workspace, version, checkpoints, dataset, adapter)
    for checkpoint in checkpoints:
        build_index.fn(tiny.workspace, "tiny/1", checkpoint.checkpoint_id, IndexOptions())
    return tiny


@pytest.mark.parametrize("method", ["grad_cos", "tracin_cp"])
def test_an_audit_records_and_shows_the_part_of_each_layer(indexed, method):
    workspace, options = indexed.workspace, AuditOptions(method=method, weighting="uniform")
    indexed.drop("outputs.jsonl", indexed.record(0), indexed.record(1))
    output_ids = collect_outputs.fn(workspace).new_output_ids
    index_ids = method_indexes(workspace, "tiny/1", method)
    audited = AuditedModel(workspace, "tiny/1", index_ids, options)
    measured = measure_outputs.fn(audited, output_ids)
    audit_id = score_outputs.fn(audited, measured)
    with workspace.ledger().read() as connection:
        details = queries.audit_details(connection, audit_id)
    found = defaultdict(list)
    for each in details.group_contributions:
        found[each.output_id, each.side].append(each)
    attributed = {(each.output_id, each.side) for each in details.attributions}
    assert set(found) == attributed | {(None, side) for _, side in attributed}
    for contributions in found.values():
        assert [each.group for each in contributions] == ["0", "2"]
        assert sum(each.share for each in contributions) == pytest.approx(1)
    overall = [each for each in details.group_contributions if each.output_id is None]
    write_audit_report.fn(ShownAudit(workspace, audit_id))
    folder = workspace.reports / audit_id
    document = json.loads((folder / "report.json").read_text("utf-8"))
    assert document["overall"]["groups"] == [
        {"group": each.group, "side": each.side, "share": pytest.approx(each.share)} for each in overall
    ]
    assert "Which layers carried it" in (folder / "report.html").read_text("utf-8")
    rows = run_sql(
        workspace.ledger().publish_snapshot(),
        "SELECT group_name, share FROM attribution_by_group WHERE output_id IS NULL ORDER BY side DESC, depth",
    ).to_pylist()
    assert [(row["group_name"], row["share"]) for row in rows] == [(each.group, each.share) for each in overall]
    assert verify_ledger(workspace.ledger()).ok
