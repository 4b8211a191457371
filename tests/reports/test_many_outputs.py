"""A report of very many outputs stays a page that opens: the most important whole, of the others a line."""

import json
from dataclasses import replace

from gradtrail.addresses import output_anchor
from gradtrail.reports.render import render_html, report_json
from gradtrail.reports.views import view_of


def many(report, count):
    first = replace(report.outputs[0], findings=(), true_label=None)
    plain = tuple(replace(first, output=replace(first.output, output_id=f"many:{n}")) for n in range(count))
    return replace(report, outputs=(*plain, *report.outputs))


def test_outputs_with_findings_are_whole_and_the_rest_has_a_line_each(sample_report):
    report = many(sample_report, 150)
    view = view_of(report)
    assert len(view.outputs) == 100
    assert len(view.outputs) + len(view.brief) == len(report.outputs)
    concerned = {section.output.output_id for section in report.outputs if section.findings}
    assert concerned <= {shown.section.output.output_id for shown in view.outputs}
    page = render_html(report)
    for section in report.outputs:
        assert page.count(f'id="{output_anchor(section.output.output_id)}"') == 1
    assert f"{len(view.brief)} more outputs" in page


def test_a_line_takes_little_and_the_document_has_everything(sample_report):
    fewer, more = many(sample_report, 150), many(sample_report, 450)
    assert len(render_html(more)) - len(render_html(fewer)) < 300 * 1000
    document = report_json(more)
    assert len(document["outputs"]) == len(more.outputs)
    assert all(section["proponents"] for section in document["outputs"][:450])
    assert json.dumps(document)
