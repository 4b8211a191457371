from __future__ import annotations

from dataclasses import replace

import pytest

from gradtrail.nouns import Finding, Preview, Share
from gradtrail.reports.charts.shares import share_figures
from gradtrail.reports.model import AuditReport, LineageStep
from gradtrail.reports.views import view_of


def shares_of(count: int, attribute: str = "author", side: str = "proponent") -> list[Share]:
    return [Share(None, side, attribute, f"value {n:02d}", (n + 1) / 1000, 1 / count, 0.0, 0.1) for n in range(count)]


def test_source_and_licence_come_first_and_the_rest_by_name() -> None:
    shares = [share for name in ("zeta", "licence", "author", "source") for share in shares_of(2, name)]
    assert [figure.attribute for figure in share_figures(shares)] == ["source", "licence", "author", "zeta"]


def test_up_to_twelve_values_are_all_shown_and_more_are_gathered_into_one_row() -> None:
    (few,) = share_figures(shares_of(12))
    (many,) = share_figures(shares_of(20))
    assert few.proponents is not None
    assert many.proponents is not None
    assert len(few.proponents.rows) == 12
    assert [row.value for row in many.proponents.rows][::12] == ["value 19", "8 other values"]
    rest = many.proponents.rows[-1]
    assert rest.share == pytest.approx(sum(n + 1 for n in range(8)) / 1000)
    assert rest.training_share == pytest.approx(8 / 20)
    assert rest.interval is None


def test_both_sides_stand_on_one_axis_that_holds_bars_ticks_and_intervals() -> None:
    shares = [
        Share(None, "proponent", "source", "a", 0.3, 0.5, 0.2, 0.62),
        Share(None, "opponent", "source", "a", 0.1, 0.5, 0.2, 0.62),
    ]
    (figure,) = share_figures(shares)
    assert figure.proponents is not None
    assert figure.opponents is not None
    assert figure.proponents.ticks == figure.opponents.ticks
    assert [label for _, label in figure.proponents.ticks] == ["0%", "20%", "40%", "60%", "80%"]
    assert figure.proponents.rows[0].bar == pytest.approx(37.5)
    assert max(figure.proponents.rows[0].tick, figure.proponents.rows[0].high_at) <= 100


def test_a_row_says_whether_its_share_is_above_within_or_below_chance() -> None:
    shares = [
        Share(None, "proponent", "source", name, share, 0.3, 0.2, 0.4)
        for name, share in (("a", 0.5), ("b", 0.3), ("c", 0.1))
    ]
    (figure,) = share_figures(shares)
    assert figure.proponents is not None
    assert [row.chance for row in figure.proponents.rows] == ["above", "within", "below"]


def test_a_side_without_influence_has_no_chart() -> None:
    (figure,) = share_figures([*shares_of(3), *(replace(s, side="opponent", share=0.0) for s in shares_of(3))])
    assert figure.proponents is not None
    assert figure.opponents is None


def test_an_attribute_with_one_value_has_nothing_to_compare() -> None:
    (figure,) = share_figures(shares_of(1))
    assert figure.only_value == "value 00"


def test_outputs_with_findings_come_first_then_wrong_ones_and_findings_know_their_number(
    sample_report: AuditReport,
) -> None:
    quiet, second, wrong, unsettled = (replace(s, findings=()) for s in sample_report.outputs)
    severe = replace(second, findings=(Finding("r", "high", "m", second.output.output_id),))
    view = view_of(replace(sample_report, outputs=(quiet, unsettled, wrong, severe)))
    ids = [shown.section.output.output_id for shown in view.outputs]
    assert ids == [section.output.output_id for section in (severe, wrong, unsettled, quiet)]
    assert view.output_numbers[ids[0]] == 1
    assert [shown.is_open for shown in view.outputs] == [True, True, True, False]


def test_neighbouring_lineage_steps_of_one_kind_are_one_station(sample_report: AuditReport) -> None:
    steps = tuple(LineageStep(kind, kind, kind) for kind in ("output", "example", "example", "moon_phase"))
    section = replace(sample_report.outputs[0], lineage=steps)
    (shown,) = view_of(replace(sample_report, outputs=(section,))).outputs
    assert [(station.title, len(station.steps)) for station in shown.stations] == [
        ("Output", 1),
        ("Examples", 2),
        ("moon phase", 1),
    ]


def test_the_view_applies_the_preview_mode_to_everything_it_shows(sample_report: AuditReport) -> None:
    text = "Once upon a time there was a person with a name and an address."
    section = sample_report.outputs[0]
    section = replace(
        section,
        preview=Preview("text", text=text),
        result=replace(section.result, prediction=text),
        proponents=tuple(replace(card, preview=Preview("text", text=text)) for card in section.proponents),
    )
    view = view_of(replace(sample_report, outputs=(section,), preview_mode="redacted"))
    assert text not in repr(view.outputs[0].preview)
    assert text not in view.outputs[0].prediction
    assert all(shown.preview is not None and text not in shown.preview.text for shown in view.outputs[0].proponents)


def test_findings_of_one_rule_stand_together_in_the_order_of_their_outputs(sample_report: AuditReport) -> None:
    ids = [section.output.output_id for section in sample_report.outputs]
    severities = ("low", "high", "low", "low")
    found = [Finding("a_rule-b", severity, "m", output_id) for severity, output_id in zip(severities, ids, strict=True)]
    sections = tuple(
        replace(section, findings=(finding,)) for section, finding in zip(sample_report.outputs, found, strict=True)
    )
    view = view_of(replace(sample_report, outputs=sections, findings=tuple(reversed(found))))
    assert [(group.title, group.severity) for group in view.finding_groups] == [
        ("a rule b", "high"),
        ("a rule b", "low"),
    ]
    numbers = [view.output_numbers[finding.output_id or ""] for finding in view.finding_groups[1].findings]
    assert numbers == sorted(numbers)
    assert view.severity_counts == (("high", 1), ("low", 3))
