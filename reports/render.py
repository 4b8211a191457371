"""One report, three forms: a self-contained HTML page, a JSON document and an Arrow table."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.ext import Extension
from markupsafe import Markup

from gradtrail.addresses import INDEX_PAGE, output_anchor
from gradtrail.digests import short
from gradtrail.reports import formats, rows
from gradtrail.reports.document import SCHEMA, json_lines, report_json
from gradtrail.reports.model import AuditReport
from gradtrail.reports.policies.sql import evidence_sql
from gradtrail.reports.table import ATTRIBUTION_SCHEMA, attribution_table
from gradtrail.reports.views import view_of

__all__ = ["ATTRIBUTION_SCHEMA", "SCHEMA", "attribution_table", "json_lines", "render_html", "report_json"]

_INDENTATION = re.compile(r"^[ \t]+", re.MULTILINE)
_TEMPLATES = Path(__file__).parent / "templates"


def render_html(report: AuditReport) -> str:
    """The report as one HTML page without scripts, links to resources, or anything that has to be fetched.

    The report's preview mode is applied first, and every text is escaped. The same report gives the same page.

    Raises:
        DataError: a preview that is not a readable PNG.
    """
    page = environment().get_template("report.html")
    return page.render(view=view_of(report), report=report, version=report.gradtrail_version)


class _Unindented(Extension):
    """Templates without the indentation of their lines, which repeats with every row and says nothing to a reader."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:  # noqa: ARG002
        return _INDENTATION.sub("", source)


@cache
def environment() -> Environment:
    """The templates with their filters; every text that they print is escaped."""
    environment = Environment(
        autoescape=True,
        extensions=[_Unindented],
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        finalize=formats.printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=formats.count,
        evidence_sql=lambda finding, audit_id: evidence_sql(audit_id, finding),
        moment=formats.moment,
        number=formats.number,
        output_anchor=output_anchor,
        percent=formats.percent,
        plural=formats.plural,
        ratio=formats.ratio,
        score=formats.score,
        short=short,
        web_address=formats.web_address,
    )
    environment.globals["rows"] = rows
    environment.globals["index_page"] = INDEX_PAGE
    # The style sheets are the package's own files: no other text is exempt from escaping here.
    environment.globals["css"] = Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8"))  # noqa: S704
    environment.globals["style"] = Markup((_TEMPLATES / "index.css").read_text(encoding="utf-8"))  # noqa: S704
    return environment
