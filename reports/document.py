"""The report as a JSON document: complete, stable, without picture bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
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
_REMEMBERED = 512


def report_json(report: AuditReport) -> dict[str, Any]:
    """Plain values of the whole report under the schema name `gradtrail.report/1`.

    Times are ISO 8601 in UTC. Previews appear as the report's mode allows, a picture as the sha256 of the bytes shown.

    Raises:
        DataError: a preview that is not a readable PNG.
    """
    document: dict[str, Any] = json.loads("".join(json_lines(report)))
    return document


def json_lines(report: AuditReport) -> Iterator[str]:
    """The document as JSON text, a line for each part and each output, so that no more than one is held at a time.

    Raises:
        DataError: a figure that is not finite, or a preview that is not a readable PNG.
    """
    document = _Document(report)
    try:
        for place, (name, text) in enumerate(document.parts()):
            yield f'{"," if place else "{"}\n"{name}": {text}'
            if name == "overall":
                yield ',\n"outputs": ['
                yield from (f"{',' if number else ''}\n{text}" for number, text in enumerate(document.outputs()))
                yield "\n]" if report.outputs else "]"
        yield "\n}\n"
    except ValueError as error:
        raise DataError(
            f"The report of audit {report.audit.audit_id} holds a figure that is not finite.",
            "Run the audit again; outputs with such a loss or score belong in quarantine.",
        ) from error


class _Document:
    """The parts of the document as JSON text. What cards of one example have in common is encoded once."""

    def __init__(self, report: AuditReport) -> None:
        self._report = report
        self._mode = report.preview_mode
        self._examples: dict[tuple[str, int, int], tuple[str, str]] = {}

    def parts(self) -> Iterator[tuple[str, str]]:
        """All parts by their names but the outputs, which come after `overall`."""
        report, audit_id = self._report, self._report.audit.audit_id
        version, counts = report.model_version, report.attribute_counts
        for name, value in {
            "schema": SCHEMA,
            "title": report.title,
            "created_at": _time(report.created_at),
            "gradtrail_version": report.gradtrail_version,
            "preview_mode": report.preview_mode,
            "audit": {"audit_id": audit_id, **_plain(report.audit)},
            "model_version": {
                "model_version_id": version.model_version_id,
                **_plain(version),
                "links": dict(report.model_links),
            },
            "run": _plain(report.run),
            "checkpoint": _plain(report.checkpoint),
            "dataset": {**_plain(report.dataset), "attribute_counts": _plain(counts)},
            "measured_with": _plain(report.measured_with),
            "checks": _plain(report.checks),
            "trust": _trust(report.trust, report.preview_mode),
            "findings": [_finding(finding, audit_id) for finding in report.findings],
        }.items():
            yield name, _json(value)
        overall = report.overall
        before = {"shares": [_share(share) for share in overall.shares]}
        after = {"groups": [_group(contribution) for contribution in overall.groups]}
        yield "overall", self._around_cards(before, overall.proponents, overall.opponents, after)
        yield "ledger_head", _json(report.ledger_head)
        evidence = {
            "audit_id": audit_id,
            "audit_root": report.audit_root,
            "event_hash": report.ledger_head,
            "signature": None if report.signature is None else _plain(report.signature),
        }
        yield "evidence", _json(evidence)

    def outputs(self) -> Iterator[str]:
        """The outputs one by one, as the report holds them."""
        return map(self._output, self._report.outputs)

    def _output(self, section: OutputSection) -> str:
        output, result, label = section.output, section.result, section.true_label
        before = {
            "output": {**vars(output), "produced_at": _time(output.produced_at)},
            "result": {**vars(result), "prediction": shown_answer(result.prediction, self._mode)},
            "true_label": None if label is None else shown_answer(label, self._mode),
            "wrong": section.wrong if section.judged else None,
            "wording": vars(section.wording),
            "preview": _preview(section.preview, self._mode),
        }
        after = {
            "shares": [_share(share) for share in section.shares],
            "groups": [_group(contribution) for contribution in section.groups],
            "findings": [_finding(finding, self._report.audit.audit_id) for finding in section.findings],
            "lineage": [vars(step) for step in section.lineage],
        }
        return self._around_cards(before, section.proponents, section.opponents, after)

    def _around_cards(
        self,
        before: Mapping[str, Any],
        proponents: Sequence[ExampleCard],
        opponents: Sequence[ExampleCard],
        after: Mapping[str, Any],
    ) -> str:
        supporting, opposing = (", ".join(map(self._card, cards)) for cards in (proponents, opponents))
        cards = f'"proponents": [{supporting}], "opponents": [{opposing}]'
        return f"{_json(before)[:-1]}, {cards}, {_json(after)[1:]}"

    def _card(self, card: ExampleCard) -> str:
        key = (card.example_id, id(card.attributes), id(card.preview))
        if key not in self._examples:
            example = {"example_id": card.example_id, "content_sha256": card.content_sha256}
            about = _json({**example, "attributes": dict(card.attributes)})[:-1]
            self._examples[key] = about, _json(_preview(card.preview, self._mode))
        about, preview = self._examples[key]
        figures = f'"rank": {card.rank}, "score": {_number(card.score)}, "share": {_number(card.share)}'
        return f'{about}, "side": "{card.side}", {figures}, "preview": {preview}}}'


_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _number(value: float | None) -> str:
    if value is None:
        return "null"
    if not math.isfinite(value):
        raise ValueError(value)
    return float.__repr__(value)


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


def _share(share: Share) -> dict[str, Any]:
    return {**vars(share), "ratio": share.ratio}


def _group(contribution: GroupContribution) -> dict[str, Any]:
    return {"group": contribution.group, "side": contribution.side, "share": contribution.share}


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
