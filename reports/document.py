"""The report as a JSON document: complete, stable, without picture bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from gradtrail.digests import sha256_bytes
from gradtrail.nouns import Finding, GroupContribution, Preview, PreviewMode, Share
from gradtrail.reports.model import AuditReport, ExampleCard, OutputSection, Trust
from gradtrail.reports.policies.sql import evidence_sql
from gradtrail.reports.previews import apply_mode, shown_answer, shown_reason

SCHEMA = "gradtrail.report/1"


def report_json(report: AuditReport) -> dict[str, Any]:
    """Plain values of the whole report under the schema name `gradtrail.report/1`.

    Times are ISO 8601 in UTC. Previews appear as the report's mode allows, a picture as the sha256 of the bytes shown.

    Raises:
        DataError: a preview that is not a readable PNG.
    """
    mode = report.preview_mode
    return {
        "schema": SCHEMA,
        "title": report.title,
        "created_at": _time(report.created_at),
        "gradtrail_version": report.gradtrail_version,
        "preview_mode": mode,
        "audit": {"audit_id": report.audit.audit_id, **_plain(report.audit)},
        "model_version": {
            "model_version_id": report.model_version.model_version_id,
            **_plain(report.model_version),
            "links": dict(report.model_links),
        },
        "run": _plain(report.run),
        "checkpoint": _plain(report.checkpoint),
        "dataset": {
            **_plain(report.dataset),
            "attribute_counts": {name: dict(counts) for name, counts in report.attribute_counts.items()},
        },
        "trust": _trust(report.trust, mode),
        "findings": [_finding(finding, report.audit.audit_id) for finding in report.findings],
        "overall": {
            "shares": [_share(share) for share in report.overall.shares],
            "proponents": [_card(card, mode) for card in report.overall.proponents],
            "opponents": [_card(card, mode) for card in report.overall.opponents],
            "groups": [_group(contribution) for contribution in report.overall.groups],
        },
        "outputs": [_section(section, mode, report.audit.audit_id) for section in report.outputs],
        "ledger_head": report.ledger_head,
        "evidence": {
            "audit_id": report.audit.audit_id,
            "audit_root": report.audit_root,
            "event_hash": report.ledger_head,
            "signature": None if report.signature is None else _plain(report.signature),
        },
    }


def _trust(trust: Trust, mode: PreviewMode) -> dict[str, Any]:
    return {
        **_plain(trust),
        "quarantined_outputs": _reasons(trust.quarantined_outputs, mode),
        "weighting": {"weighting_id": trust.weighting.weighting_id, **_plain(trust.weighting)},
        "coverage": {
            **_plain(trust.coverage),
            "quarantined": _reasons(trust.coverage.quarantined, mode),
            "parameter_share": trust.coverage.parameter_share,
            "example_share": trust.coverage.example_share,
        },
    }


def _reasons(reasons: Mapping[str, str], mode: PreviewMode) -> dict[str, str]:
    return {name: shown_reason(reason, mode) for name, reason in reasons.items()}


def _finding(finding: Finding, audit_id: str) -> dict[str, Any]:
    return {**_plain(finding), "sql": evidence_sql(audit_id, finding)}


def _section(section: OutputSection, mode: PreviewMode, audit_id: str) -> dict[str, Any]:
    return {
        "output": _plain(section.output),
        "result": {
            **_plain(section.result),
            "prediction": shown_answer(section.result.prediction, mode),
        },
        "true_label": None if section.true_label is None else shown_answer(section.true_label, mode),
        "wrong": section.wrong if section.judged else None,
        "wording": _plain(section.wording),
        "preview": _preview(section.preview, mode),
        "proponents": [_card(card, mode) for card in section.proponents],
        "opponents": [_card(card, mode) for card in section.opponents],
        "shares": [_share(share) for share in section.shares],
        "groups": [_group(contribution) for contribution in section.groups],
        "findings": [_finding(finding, audit_id) for finding in section.findings],
        "lineage": [_plain(step) for step in section.lineage],
    }


def _share(share: Share) -> dict[str, Any]:
    return {**_plain(share), "ratio": share.ratio}


def _group(contribution: GroupContribution) -> dict[str, Any]:
    return {"group": contribution.group, "side": contribution.side, "share": contribution.share}


def _card(card: ExampleCard, mode: PreviewMode) -> dict[str, Any]:
    return {
        "example_id": card.example_id,
        "content_sha256": card.content_sha256,
        "attributes": dict(card.attributes),
        "side": card.side,
        "rank": card.rank,
        "score": card.score,
        "share": card.share,
        "preview": _preview(card.preview, mode),
    }


def _preview(preview: Preview | None, mode: PreviewMode) -> dict[str, Any] | None:
    shown = apply_mode(preview, mode)
    if shown is None:
        return None
    if shown.kind == "image":
        return {"kind": "image", "png_sha256": sha256_bytes(shown.png)}
    return {"kind": "text", "text": shown.text} if shown.kind == "text" else {"kind": "row", "row": dict(shown.row)}


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    """Records and mappings as dictionaries, times as text, tuples as lists; what JSON holds already stays."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, datetime):
        return _time(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    return value
