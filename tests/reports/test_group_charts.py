import re
from dataclasses import replace

import pytest

from gradtrail.nouns import GroupContribution, Weighting
from gradtrail.reports.charts.groups import group_figure, weight_chart
from gradtrail.reports.document import report_json
from gradtrail.reports.render import render_html

LAYERS = ("embed", "block.0", "block.1", "head <script>alert(1)</script>")


def _contributions(output_id, shares=(0.5, 0.3, -0.1, 0.3), side="proponent"):
    return tuple(GroupContribution(output_id, side, name, share) for name, share in zip(LAYERS, shares, strict=True))


@pytest.fixture
def grouped_report(sample_report):
    sections = tuple(
        replace(section, groups=_contributions(section.output.output_id, side="opponent"))
        for section in sample_report.outputs
    )
    overall = replace(sample_report.overall, groups=_contributions(None) + _contributions(None, side="opponent"))
    return replace(sample_report, overall=overall, outputs=sections)


def test_rows_are_in_the_order_of_the_model_and_a_negative_bar_ends_at_zero():
    chart = group_figure(_contributions("o")).proponents
    assert [row.name for row in chart.rows] == list(LAYERS)
    assert [row.text for row in chart.rows] == ["50.0%", "30.0%", "−10.0%", "30.0%"]
    negative = chart.rows[2]
    assert negative.bar_at + negative.bar_width == pytest.approx(chart.zero, abs=0.02)
    assert all(row.bar_at == chart.zero for row in chart.rows if row.value > 0)
    assert chart.ticks[0][0] == 0
    assert chart.ticks[-1][0] == 100
    assert chart.rows[0].bar_width == pytest.approx(100 * 0.5 / 0.8, abs=0.01)


def test_both_sides_share_an_axis_and_a_side_without_attributions_is_left_out():
    both = group_figure([*_contributions("o"), *_contributions("o", (1.4, -0.2, -0.2, 0.0), "opponent")])
    assert both.proponents.ticks == both.opponents.ticks
    assert group_figure(_contributions("o")).opponents is None
    assert group_figure([]) is None


def test_neighbours_share_a_row_where_there_are_many():
    many = [GroupContribution(None, "proponent", f"layer-{place}", 1 / 90) for place in range(90)]
    rows = group_figure(many, 24).proponents.rows
    assert len(rows) == 23
    assert rows[0].name == "layer-0 … layer-3"
    assert rows[-1].name == "layer-88 … layer-89"
    assert sum(row.value for row in rows) == pytest.approx(1)


def test_weights_are_shown_in_the_order_of_the_model_with_mean_one():
    chart = weight_chart({"head": 1.0, "embed": 3.0, "new": 2.0}, ["embed", "head"])
    assert [(row.name, row.value) for row in chart.rows] == [("embed", 1.5), ("head", 0.5), ("new", 1.0)]
    many = weight_chart({f"layer-{place:02d}": 1.0 for place in range(50)}, [])
    assert {row.value for row in many.rows} == {1.0}
    assert weight_chart({}, ["embed"]) is None


@pytest.mark.parametrize("shares", [(1.0,), (0.0, 0.0), (-0.2, -0.4), (1e-9, 1.0), (250.0, -249.0)])
def test_every_bar_stays_on_the_axis(shares):
    chart = group_figure([GroupContribution(None, "proponent", str(n), s) for n, s in enumerate(shares)]).proponents
    assert 2 <= len(chart.ticks) <= 7
    for row in chart.rows:
        assert -0.01 <= row.bar_at <= row.bar_at + row.bar_width <= 100.02


def test_the_page_says_which_layers_carried_it_overall_and_by_output(grouped_report):
    page = render_html(grouped_report)
    assert page.count('id="groups"') == 1
    assert page.index("The examples that matter most") < page.index("Which layers carried it")
    assert page.count("<caption>Support of all outputs, by layer</caption>") == 1
    assert page.count("<caption>Opposition of this output, by layer</caption>") == len(grouped_report.outputs)
    assert "<caption>Support of this output, by layer</caption>" not in page
    assert "head &lt;script&gt;" in page
    assert "<script" not in page
    section = page[page.index('id="groups"') : page.index('aria-labelledby="outputs"')]
    assert re.findall(r'<th scope="row">(embed|block\.\d)', section) == ["embed", "block.0", "block.1"] * 2
    assert section.count('<td class="negative"') == 2
    assert "How the layers were weighted" not in page


def test_learned_weights_stand_over_depth(grouped_report):
    learned = Weighting("further_training", dict.fromkeys(LAYERS, 1.0), {"effective_groups": 3.6})
    trust = replace(grouped_report.trust, weighting=learned)
    page = render_html(replace(grouped_report, trust=trust))
    assert "How the layers were weighted" in page
    assert "the objective was further training. That is as spread out as 3.60 of 4 equal layers." in page
    bare = replace(trust, weighting=replace(learned, evidence={}))
    assert "as spread out as" not in render_html(replace(grouped_report, trust=bare))


def test_an_audit_from_before_has_no_such_section(sample_report):
    page = render_html(sample_report)
    assert "Which layers carried it" not in page
    assert report_json(sample_report)["overall"]["groups"] == []


def test_the_json_report_has_every_group(grouped_report):
    document = report_json(grouped_report)
    assert document["overall"]["groups"][2] == {"group": "block.1", "side": "proponent", "share": -0.1}
    assert [part["group"] for part in document["outputs"][0]["groups"]] == list(LAYERS)
