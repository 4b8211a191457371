from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from gradtrail.nouns import Fidelity, Preview
from gradtrail.reports.model import AuditReport, OutputSection, Overall
from gradtrail.reports.render import render_html, report_json

PICTURE = re.compile(
    r"\.(p\d+)\{background-image:url\(data:image/png;base64,([A-Za-z0-9+/=]+)\);aspect-ratio:8/8;(.*?)\}"
)
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """A strict reading of a page: every tag closed in order, with the elements, texts and figures it holds."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.values: list[float] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(("title of a part" if tag == "title" and "svg" in self._open else tag, dict(attrs)))
        if tag == "data":
            self.values.append(float(dict(attrs)["value"] or "nan"))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(sample_report: AuditReport) -> Page:
    return Page(render_html(sample_report))


def words(page: Page) -> str:
    return " ".join(page.text.split())


def test_the_page_is_well_formed_and_says_what_it_is(page: Page, sample_report: AuditReport) -> None:
    assert page.all("html")[0]["lang"] == "en-GB"
    assert len(page.all("title")) == len(page.all("h1")) == len(page.all("main")) == 1
    assert sample_report.title in words(page)


def test_headings_never_skip_a_level(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))


def test_the_page_loads_nothing_and_forbids_itself_to(page: Page) -> None:
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base", "audio", "video", "source")
        assert not any(name.startswith("on") for name in attributes)
        assert tag != "img"
        assert "src" not in attributes
        assert "href" not in attributes or tag == "a" or attributes["href"] == "data:,"
        assert "target" not in attributes


def test_the_style_sheet_asks_for_nothing_outside(sample_report: AuditReport) -> None:
    style = render_html(sample_report).split("<style>")[1].split("</style>")[0]
    assert style.count("url(") == style.count("url(data:image/png;base64,") == len(PICTURE.findall(style)) > 0
    assert "@import" not in style
    assert "@font-face" not in style


def test_only_web_addresses_are_links(page: Page, sample_report: AuditReport) -> None:
    targets = {anchor["href"] for anchor in page.all("a")}
    assert "https://mlflow.example/#/run" in targets
    elsewhere = targets - {"../index.html"}
    assert all(target and target.startswith("https://mlflow.example/") for target in elsewhere)
    assert sample_report.model_links["audit run"] == "javascript:alert(1)"


def test_script_tags_in_ids_values_and_names_are_text(sample_report: AuditReport, script_text: str) -> None:
    awkward = f"</style></title>{script_text}\"'><img src=x onerror=alert(1)>"
    section = sample_report.outputs[0]
    section = replace(
        section,
        output=replace(section.output, output_id=awkward, source=awkward),
        result=replace(section.result, prediction=awkward),
        true_label=awkward,
        preview=Preview("row", row={awkward: awkward}),
        proponents=(
            replace(section.proponents[0], example_id=awkward, attributes={awkward: awkward}),
            replace(section.proponents[1], preview=Preview("text", text=awkward)),
        ),
    )
    report = replace(
        sample_report,
        title=awkward,
        outputs=(section,),
        model_version=replace(sample_report.model_version, name=awkward, adapter=awkward),
        dataset=replace(sample_report.dataset, name=awkward),
        trust=replace(sample_report.trust, method=awkward, quarantined_outputs={awkward: awkward}, left_out=(awkward,)),
        findings=tuple(replace(finding, rule=awkward, message=awkward) for finding in sample_report.findings),
        audit=replace(sample_report.audit, parameters={awkward: awkward}),
        gradtrail_version=awkward,
    )
    page = Page(render_html(report))
    assert page.all("script") == []
    assert page.all("img") == []
    assert page.text.count(awkward) > 15


def test_control_characters_do_not_reach_the_page(sample_report: AuditReport) -> None:
    html = render_html(replace(sample_report, title="a\x00b\x1b[31m"))
    assert "\x00" not in html
    assert "\x1b" not in html
    assert "a�b�[31m" in html


def test_the_same_report_gives_the_same_page(sample_report: AuditReport) -> None:
    assert render_html(sample_report) == render_html(sample_report)


def test_every_digest_is_there_in_full(page: Page, sample_report: AuditReport) -> None:
    for digest in (
        sample_report.audit.audit_id,
        sample_report.ledger_head,
        sample_report.audit.policy_sha256,
        sample_report.model_version.adapter_sha256,
        *sample_report.model_version.checkpoint_ids,
        *sample_report.audit.index_ids,
        "torch 2.9.1",
        "transformers 4.57.3",
        *(section.output.payload_sha256 for section in sample_report.outputs),
        *(card.content_sha256 for card in sample_report.cards()),
    ):
        assert digest in page.text


def pictures(page: Page) -> list[dict[str, str | None]]:
    return [attributes for attributes in page.all("span") if "picture" in (attributes.get("class") or "").split()]


def test_every_picture_that_says_something_has_a_text(page: Page) -> None:
    thumbnails = [shown for shown in pictures(page) if "thumbnail" in (shown["class"] or "")]
    others = [shown for shown in pictures(page) if shown not in thumbnails]
    assert all(shown["aria-hidden"] == "true" for shown in thumbnails)
    assert all(shown["role"] == "img" and shown["aria-label"] for shown in others)
    assert len(thumbnails) == 4


def test_each_distinct_picture_is_there_once_and_shown_wherever_it_belongs(
    page: Page, sample_report: AuditReport
) -> None:
    held = PICTURE.findall(render_html(sample_report))
    previews = [section.preview for section in sample_report.outputs]
    shown = {preview.png for preview in previews if preview} | {
        card.preview.png for card in sample_report.cards() if card.preview is not None
    }
    assert {base64.b64decode(content) for _, content, _ in held} == shown
    assert len(held) == len(shown)
    assert {rest for *_, rest in held} == {"image-rendering:pixelated"}
    names = [(attributes["class"] or "").split()[1] for attributes in pictures(page)]
    assert set(names) == {name for name, *_ in held}
    assert len(names) == 2 * len(previews) + len(list(sample_report.cards())) > len(held)


def test_every_table_has_headers_with_scope(page: Page) -> None:
    assert page.all("table")
    assert all(header.get("scope") in ("row", "col") for header in page.all("th"))


def test_the_figures_on_the_page_are_those_of_the_json(page: Page, sample_report: AuditReport) -> None:
    document = report_json(sample_report)
    shown = {round(value, 12) for value in page.values}
    cards = [
        card
        for part in (document["overall"], *document["outputs"])
        for card in (*part["proponents"], *part["opponents"])
    ]
    expected = {round(card["share"], 12) for card in cards}
    expected |= {round(card["score"], 12) for card in cards if card["score"] is not None}
    expected |= {round(share["share"], 12) for share in document["overall"]["shares"]}
    expected |= {round(section["result"]["loss"], 12) for section in document["outputs"]}
    expected.add(round(document["trust"]["coverage"]["parameter_share"], 12))
    assert len(expected) > 100
    assert expected <= shown


def test_findings_stand_at_the_top_by_severity_and_name_their_output(page: Page, sample_report: AuditReport) -> None:
    text = words(page)
    counts = [
        f"{sum(f.severity == severity for f in sample_report.findings)} {severity}" for severity in ("high", "info")
    ]
    assert text.index(counts[0]) < text.index(counts[1]) < text.index("What was audited")
    for finding in sample_report.findings:
        assert " ".join(finding.message.split()) in text
    assert {finding.severity for finding in sample_report.findings} == {"high", "medium", "low", "info"}
    assert "whole audit" in text
    assert "output 1 ·" in text


def test_trust_says_plainly_that_fidelity_was_not_measured(page: Page) -> None:
    assert "Fidelity not yet measured for this checkpoint: treat scores as indicative." in words(page)


def test_trust_gives_fidelity_with_error_and_ceiling(
    sample_report: AuditReport, measured_fidelity: Callable[..., Fidelity]
) -> None:
    trust = replace(sample_report.trust, fidelity=measured_fidelity())
    text = words(Page(render_html(replace(sample_report, trust=trust, findings=()))))
    assert "0.826 ± 0.021 of at most 0.943" in text
    assert "random halves" in text
    assert "over 32 outputs" in text
    assert "not yet measured" not in text
    assert "indicative only" not in text


def test_fidelity_below_the_policy_is_called_indicative_only(
    sample_report: AuditReport, measured_fidelity: Callable[..., Fidelity]
) -> None:
    trust = replace(sample_report.trust, fidelity=measured_fidelity(value=-0.1, metric="another_metric"))
    findings = tuple(f for f in sample_report.findings if f.evidence["kind"] == "fidelity_below")
    text = words(Page(render_html(replace(sample_report, trust=trust, findings=findings))))
    assert "indicative only" in text
    assert "another_metric" in text


def test_what_is_absent_is_said(sample_report: AuditReport) -> None:
    section = replace(sample_report.outputs[0], opponents=(), shares=(), lineage=(), findings=())
    opposing = replace(section, proponents=(), opponents=sample_report.outputs[0].opponents)
    bare = replace(
        sample_report,
        outputs=(section, opposing),
        findings=(),
        overall=Overall((), (), ()),
        model_links={},
        attribute_counts={},
        trust=replace(sample_report.trust, left_out=(), quarantined_outputs={}, not_reproduced=()),
    )
    text = words(Page(render_html(bare)))
    for sentence in (
        "No rule of the policy fired on 2 outputs.",
        "No opponents: no example had a negative score.",
        "No proponents: no example had a positive score.",
        "No shares: the training examples carry no attributes.",
        "No lineage was recorded for this output.",
        "Left outnothing",
    ):
        assert sentence in text


def test_an_audit_whose_outputs_were_all_quarantined_is_still_a_report(sample_report: AuditReport) -> None:
    text = words(Page(render_html(replace(sample_report, outputs=(), findings=()))))
    assert "every output of this audit was quarantined" in text


def test_redacted_pages_hold_no_original_picture_and_no_pages_hold_none(sample_report: AuditReport) -> None:
    originals = {
        base64.b64encode(card.preview.png).decode() for card in sample_report.cards() if card.preview is not None
    }
    assert all(original in render_html(sample_report) for original in originals)
    redacted = render_html(replace(sample_report, preview_mode="redacted"))
    assert not any(original in redacted for original in originals)
    assert "redacted preview of training example" in redacted
    nothing = render_html(replace(sample_report, preview_mode="none"))
    assert "data:image" not in nothing
    assert "no preview" in nothing


def test_text_and_table_previews_are_shown_as_such(sample_report: AuditReport) -> None:
    def with_preview(section: OutputSection, preview: Preview) -> OutputSection:
        return replace(section, proponents=tuple(replace(card, preview=preview) for card in section.proponents))

    text = with_preview(sample_report.outputs[0], Preview("text", text="the quick brown fox"))
    row = with_preview(sample_report.outputs[1], Preview("row", row={"income": "52,000"}))
    page = Page(render_html(replace(sample_report, outputs=(text, row))))
    assert page.text.count("the quick brown fox") == page.text.count("52,000") == 6
    assert len(page.all("blockquote")) == 6


def test_cards_without_share_or_score_still_name_their_example(sample_report: AuditReport) -> None:
    cards = tuple(replace(card, share=None, score=None) for card in sample_report.overall.proponents)
    page = Page(render_html(replace(sample_report, overall=Overall((), cards, ()), outputs=())))
    assert all(card.example_id in page.text for card in cards)


def test_the_page_says_for_how_many_values_together_the_intervals_hold(sample_report: AuditReport) -> None:
    together = Page(render_html(sample_report)).text
    assert "hold for all 3 values together" in together
    assert "however many values were tested" in together
    first, *others = sample_report.overall.shares
    untested = [
        replace(share, interval_low=None, interval_high=None) if share.value == first.value else share
        for share in (first, *others)
    ]
    part = replace(sample_report, overall=replace(sample_report.overall, shares=tuple(untested)))
    assert "hold for the 2 values with the most examples together" in Page(render_html(part)).text
    older = replace(sample_report, trust=replace(sample_report.trust, intervals_together=False))
    page = Page(render_html(older)).text
    assert "together; they are wider" not in page
    assert "some lie outside theirs by chance" in page


def test_outputs_of_which_reproduction_is_no_question_are_neither_reproduced_nor_not(
    sample_report: AuditReport,
) -> None:
    unasked = tuple(
        replace(section, result=replace(section.result, reproduced=None)) for section in sample_report.outputs
    )
    whole = replace(sample_report, outputs=unasked, trust=replace(sample_report.trust, not_reproduced=()), findings=())
    text = words(Page(render_html(whole)))
    assert "is no question of this model" in text
    assert "not applicable" in text
    assert "not reproduced" not in text
    assert "reproduced by the pinned checkpoint" not in text
    mixed = replace(whole, outputs=(unasked[0], *sample_report.outputs[1:]))
    asked = len(mixed.outputs) - 1
    text = words(Page(render_html(mixed)))
    assert f"{asked} of {asked} output" in text
    assert "by the pinned checkpoint. Whether it gives 1 output again is no question of this model. Every" in text
