"""The report as a JSON document: complete, stable, without picture bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from gradtrail.digests import sha256_bytes
from gradtrail.errors import DataError
from gradtrail.nouns import Finding, GroupContribution, Preview, PreviewMode, Share
from gradtrail.reports.model import AuditReport, ExampleCard, OutputSection, Trust
from gradtrail.reports.policies.sql import evidence_sql
from gradtrail.reports.previews import apply_mode, shown_answer, shown_reason

SCHEMA = "gradtrail.report/1"
_OUTPUTS = "outputs"
_REMEMBERED = 512


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def report_json(report: AuditReport) -> dict[str, Any]:
    """Plain values of the whole report under the schema name `gradtrail.report/1`.

    Times are ISO 8601 in UTC. Previews appear as the report's mode allows, a picture as the sha256 of the bytes shown.

    Raises:
        DataError: a preview that is not a readable PNG.
    """
    return {name: list(value) if name == _OUTPUTS else value for name, value in _parts(report)}


def json_lines(report: AuditReport) -> Iterator[str]:
    """The document as JSON text, a line for each part and each output, so that no more than one is held at a time.

    Raises:
        DataError: a figure that is not finite, or a preview that is not a readable PNG.
    """
    try:
        for place, (name, value) in enumerate(_parts(report)):
            yield f'{"," if place else "{"}\n"{name}": '
            if name != _OUTPUTS:
                yield _ENCODER.encode(value)
                continue
            for number, section in enumerate(value):
                yield f"{',' if number else '['}\n{_ENCODER.encode(section)}"
            yield "\n]" if report.outputs else "[]"
        yield "\n}\n"
    except ValueError as error:
        raise DataError(
            f"The report of audit {report.audit.audit_id} holds a figure that is not finite.",
            "Run the audit again; outputs with such a loss or score belong in quarantine.",
        ) from error


def _parts(report: AuditReport) -> Iterator[tuple[str, Any]]:
    """The document by its names, in order; the outputs one by one."""
    mode, audit_id = report.preview_mode, report.audit.audit_id
    yield "schema", SCHEMA
    yield "title", report.title
    yield "created_at", _time(report.created_at)
    yield "gradtrail_version", report.gradtrail_version
    yield "preview_mode", mode
    yield "audit", {"audit_id": audit_id, **_plain(report.audit)}
    model_version = {"model_version_id": report.model_version.model_version_id, **_plain(report.model_version)}
    yield "model_version", {**model_version, "links": dict(report.model_links)}
    yield "run", _plain(report.run)
    yield "checkpoint", _plain(report.checkpoint)
    counts = {name: dict(values) for name, values in report.attribute_counts.items()}
    yield "dataset", {**_plain(report.dataset), "attribute_counts": counts}
    yield "trust", _trust(report.trust, mode)
    yield "findings", [_finding(finding, audit_id) for finding in report.findings]
    yield (
        "overall",
        {
            "shares": [_share(share) for share in report.overall.shares],
            "proponents": [_card(card, mode) for card in report.overall.proponents],
            "opponents": [_card(card, mode) for card in report.overall.opponents],
            "groups": [_group(contribution) for contribution in report.overall.groups],
        },
    )
    yield _OUTPUTS, (_section(section, mode, audit_id) for section in report.outputs)
    yield "ledger_head", report.ledger_head
    yield (
        "evidence",
        {
            "audit_id": audit_id,
            "audit_root": report.audit_root,
            "event_hash": report.ledger_head,
            "signature": None if report.signature is None else _plain(report.signature),
        },
    )


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
    return {
        "output_id": share.output_id,
        "side": share.side,
        "attribute": share.attribute,
        "value": share.value,
        "share": share.share,
        "training_share": share.training_share,
        "interval_low": share.interval_low,
        "interval_high": share.interval_high,
        "ratio": share.ratio,
    }


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
        return {"kind": "image", "png_sha256": _png_sha256(shown.png)}
    return {"kind": "text", "text": shown.text} if shown.kind == "text" else {"kind": "row", "row": dict(shown.row)}


@lru_cache(maxsize=_REMEMBERED)
def _png_sha256(png: bytes) -> str:
    return sha256_bytes(png)


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    """Records and mappings as dictionaries, times as text, tuples as lists; what JSON holds already stays."""
    if value is None or isinstance(value, str | int | float):
        return value
    if is_dataclass(value):
        return {name: _plain(item) for name, item in vars(value).items()}
    if isinstance(value, datetime):
        return _time(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return [_plain(item) for item in sorted(value)]
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
