from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pytest

from gradtrail.digests import sha256_bytes
from gradtrail.errors import DataError
from gradtrail.nouns import Preview, Wording
from gradtrail.reports.model import AuditReport
from gradtrail.reports.previews import MASK
from gradtrail.reports.render import ATTRIBUTION_SCHEMA, SCHEMA, attribution_table, render_html, report_json
from gradtrail.reports.views import view_of


def test_the_document_survives_json_unchanged(sample_report: AuditReport) -> None:
    document = report_json(sample_report)
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_the_document_names_its_schema_and_everything_the_audit_pinned(sample_report: AuditReport) -> None:
    document = report_json(sample_report)
    assert document["schema"] == SCHEMA == "gradtrail.report/1"
    assert document["created_at"] == "2026-11-21T23:08:00Z"
    assert document["audit"]["audit_id"] == sample_report.audit.audit_id
    assert document["audit"]["index_ids"] == list(sample_report.audit.index_ids)
    assert document["model_version"]["model_version_id"] == "digits-classifier/3"
    assert document["trust"]["weighting"]["weighting_id"] == sample_report.trust.weighting.weighting_id
    assert document["trust"]["coverage"]["quarantined"] == {"digits-0431": "NaN in its gradient"}
    assert document["dataset"]["attribute_counts"]["licence"] == {"CC-BY-4.0": 540, "unlicensed": 60}
    assert document["overall"]["shares"][0].keys() >= {"share", "training_share", "ratio", "interval_low"}
    assert set(document) == {
        *("schema", "title", "created_at", "gradtrail_version", "preview_mode", "audit", "model_version", "run"),
        *("checkpoint", "dataset", "trust", "findings", "overall", "outputs", "ledger_head", "evidence"),
        *("measured_with", "checks"),
    }
    assert document["measured_with"] == {"torch": "2.9.1", "transformers": "4.57.3"}
    assert document["checks"] == {"losses": 2e-7, "gradients": 3e-7, "rounding": 0.012}


def test_pictures_are_named_by_digest_and_never_carried(sample_report: AuditReport) -> None:
    card = sample_report.outputs[0].proponents[0]
    assert card.preview is not None
    shown = report_json(sample_report)["outputs"][0]["proponents"][0]["preview"]
    assert shown == {"kind": "image", "png_sha256": sha256_bytes(card.preview.png)}


def test_the_document_obeys_the_preview_mode(sample_report: AuditReport) -> None:
    text = "Once upon a time there was a person with a name and an address."
    section = replace(
        sample_report.outputs[0],
        preview=Preview("row", row={"name": "Jane Doe"}),
        result=replace(sample_report.outputs[0].result, prediction=text),
        proponents=(replace(sample_report.outputs[0].proponents[0], preview=Preview("text", text=text)),),
    )
    report = replace(sample_report, outputs=(section,))
    assert json.dumps(report_json(report)).count(text) == 2
    redacted = report_json(replace(report, preview_mode="redacted"))["outputs"][0]
    assert redacted["preview"]["row"] == {"name": MASK}
    assert text not in json.dumps(redacted)
    nothing = report_json(replace(report, preview_mode="none"))["outputs"][0]
    assert nothing["preview"] is nothing["proponents"][0]["preview"] is None
    original = sample_report.outputs[1].proponents[0].preview
    assert original is not None
    assert sha256_bytes(original.png) not in json.dumps(report_json(replace(sample_report, preview_mode="redacted")))


def test_a_long_true_label_and_what_a_refusal_quotes_are_masked_like_a_prediction(sample_report: AuditReport) -> None:
    said, truly = "The patient stays in hospital until further notice.", "The patient went home on the third of May."
    first = replace(sample_report.outputs[0].result, prediction=said)
    section = replace(sample_report.outputs[0], result=first, true_label=truly, right=False)
    coverage = replace(sample_report.trust.coverage, quarantined={"digits-0431": f"names {said!r}, which is no class"})
    trust = replace(sample_report.trust, coverage=coverage, quarantined_outputs={"inbox:9": f"names {truly!r}"})
    report = replace(sample_report, outputs=(section,), trust=trust)
    assert json.dumps(report_json(report)).count(truly) == 2
    for mode in ("redacted", "none"):
        shown = replace(report, preview_mode=mode)
        document = report_json(shown)
        assert document["outputs"][0]["true_label"] == f"The{MASK}"
        assert document["outputs"][0]["wrong"] is True
        for whole in (json.dumps(document), render_html(shown)):
            assert truly not in whole
            assert said not in whole


def test_a_wrong_prediction_is_marked_and_an_unknown_one_is_left_open(sample_report: AuditReport) -> None:
    marks = [section["wrong"] for section in report_json(sample_report)["outputs"]]
    assert marks == [False, False, True, None]


def test_a_number_that_cannot_be_judged_is_neither_right_nor_wrong(sample_report: AuditReport) -> None:
    wording = Wording("Minus the prediction", "training on them raises this prediction", "training on them lowers it")
    section = replace(
        sample_report.outputs[0],
        result=replace(sample_report.outputs[0].result, prediction="2.30001", loss=-2.30001),
        true_label="2.3",
        right=None,
        findings=(),
        wording=wording,
    )
    report = replace(sample_report, outputs=(section,), findings=())
    document = report_json(report)["outputs"][0]
    assert (document["true_label"], document["wrong"]) == ("2.3", None)
    assert document["wording"]["measured"] == "Minus the prediction"
    page = render_html(report)
    assert "said <b><bdi>2.30001</bdi></b>, truly <b><bdi>2.3</bdi></b>" in page
    assert "<dt>Minus the prediction</dt>" in page
    for said in ("training on them raises this prediction", "training on them lowers it"):
        assert said in page
    for untrue in ("lowers the loss", "lower the loss", "with a known true label", "which is right", ">wrong<"):
        assert untrue not in page
    assert (attribution_table(report).schema.metadata or {})[b"gradtrail.known_labels"] == b"0"
    assert not view_of(report).outputs[0].section.wrong


def test_a_damaged_preview_is_refused(sample_report: AuditReport) -> None:
    section = replace(sample_report.outputs[0], preview=Preview("image", png=b"no picture"))
    with pytest.raises(DataError, match="not a readable PNG"):
        report_json(replace(sample_report, outputs=(section,)))


def test_the_table_has_a_row_for_every_output_side_and_rank(sample_report: AuditReport) -> None:
    table = attribution_table(sample_report)
    document = report_json(sample_report)
    judged = [section["wrong"] for section in document["outputs"] if section["wrong"] is not None]
    assert table.schema.equals(ATTRIBUTION_SCHEMA)
    assert table.schema.metadata == {
        b"gradtrail.schema": b"gradtrail.attributions/1",
        b"gradtrail.known_labels": str(len(judged)).encode(),
        b"gradtrail.wrong_outputs": str(sum(judged)).encode(),
    }
    expected = [
        (section["output"]["output_id"], card["example_id"], card["side"], card["rank"], card["score"], card["share"])
        for section in document["outputs"]
        for card in (*section["proponents"], *section["opponents"])
    ]
    columns = ("output_id", "example_id", "side", "rank", "score", "share")
    assert list(zip(*(table[name].to_pylist() for name in columns), strict=True)) == expected
    assert set(table["audit_id"].to_pylist()) == {sample_report.audit.audit_id}
    assert dict(table["attributes"][0].as_py()) == dict(sample_report.outputs[0].proponents[0].attributes)


def test_a_report_without_outputs_has_a_table_without_rows(sample_report: AuditReport) -> None:
    table = attribution_table(replace(sample_report, outputs=()))
    assert table.num_rows == 0
    assert table.schema.field("attributes").type == pa.map_(pa.string(), pa.string())
