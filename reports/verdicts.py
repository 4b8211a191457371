"""Verdicts on audits: their findings in the shape of test results, which every CI system can read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

from gradtrail.nouns import SEVERITIES, Finding, Severity
from gradtrail.reports.policies.sql import evidence_sql

SCHEMA = "gradtrail.gate/1"
UNJUDGED = "outputs-judged"
"""Name of the case that fails where a gate could not judge what it was given."""
# What XML 1.0 cannot hold, escaped or not (section 2.2).
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class AuditVerdict:
    """An audit with the `rules` it was held to and its `findings`; a rule without findings passed."""

    audit_id: str
    model_version_id: str
    recorded_at: datetime
    rules: tuple[str, ...]
    findings: tuple[Finding, ...]
    outputs: int = 0


def stops(finding: Finding, fail_on: Severity) -> bool:
    """Whether a finding is of this severity or a higher one."""
    return SEVERITIES.index(finding.severity) <= SEVERITIES.index(fail_on)


def verdict_document(
    audits: Sequence[AuditVerdict], fail_on: Severity, *, unjudged: str = "", model_version_id: str = ""
) -> dict[str, Any]:
    """Test results as JSON: a suite an audit, a case a rule, which fails by a finding of `fail_on` or higher.

    `unjudged` says why the gate could not judge what it was given: one more suite, of one case that fails.
    """
    suites = [_suite(audit, fail_on) for audit in audits]
    if unjudged:
        suites.append(_unjudged_suite(unjudged, model_version_id))
    return {
        "schema": SCHEMA,
        "fail_on": fail_on,
        "tests": sum(suite["tests"] for suite in suites),
        "failures": sum(suite["failures"] for suite in suites),
        "suites": suites,
    }


def junit_xml(document: Mapping[str, Any]) -> bytes:
    """The same as JUnit XML: testsuites, testsuite, testcase, failure; lower findings stand in system-out."""
    root = ElementTree.Element(
        "testsuites", name="gradtrail", tests=str(document["tests"]), failures=str(document["failures"])
    )
    for suite in document["suites"]:
        element = ElementTree.SubElement(
            root,
            "testsuite",
            name=_clean(f"{suite['model_version_id']} audit {suite['audit_id'][:12] or 'none'}"),
            tests=str(suite["tests"]),
            failures=str(suite["failures"]),
            errors="0",
            timestamp=suite["recorded_at"],
        )
        for case in suite["cases"]:
            _add_case(element, suite, case)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _suite(audit: AuditVerdict, fail_on: Severity) -> dict[str, Any]:
    names = list(dict.fromkeys([*audit.rules, *(finding.rule for finding in audit.findings)]))
    cases = []
    for name in names:
        found = [
            {
                "severity": finding.severity,
                "message": finding.message,
                "output_id": finding.output_id,
                "failure": stops(finding, fail_on),
                "sql": evidence_sql(audit.audit_id, finding),
            }
            for finding in audit.findings
            if finding.rule == name
        ]
        cases.append({"rule": name, "passed": not any(each["failure"] for each in found), "findings": found})
    return {
        "audit_id": audit.audit_id,
        "model_version_id": audit.model_version_id,
        "recorded_at": audit.recorded_at.astimezone(UTC).isoformat(timespec="seconds"),
        "tests": len(cases),
        "failures": sum(not case["passed"] for case in cases),
        "cases": cases,
    }


def _unjudged_suite(cause: str, model_version_id: str) -> dict[str, Any]:
    found = {"severity": SEVERITIES[0], "message": cause, "output_id": None, "failure": True, "sql": ""}
    return {
        "audit_id": "",
        "model_version_id": model_version_id,
        "recorded_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "tests": 1,
        "failures": 1,
        "cases": [{"rule": UNJUDGED, "passed": False, "findings": [found]}],
    }


def _add_case(suite_element: ElementTree.Element, suite: Mapping[str, Any], case: Mapping[str, Any]) -> None:
    element = ElementTree.SubElement(
        suite_element,
        "testcase",
        name=_clean(case["rule"]),
        classname=_clean(f"gradtrail.{suite['model_version_id']}"),
        time="0",
    )
    failures = [each for each in case["findings"] if each["failure"]]
    if failures:
        worst = min(failures, key=lambda each: SEVERITIES.index(each["severity"]))
        text = "\n\n".join(_told(each) for each in failures)
        failure = ElementTree.SubElement(element, "failure", type=worst["severity"], message=_clean(worst["message"]))
        failure.text = _clean(text)
    if below := [each for each in case["findings"] if not each["failure"]]:
        ElementTree.SubElement(element, "system-out").text = _clean("\n\n".join(_told(each) for each in below))


def _told(finding: Mapping[str, Any]) -> str:
    where = f" [{finding['output_id']}]" if finding["output_id"] else ""
    return f"{finding['severity']}{where}: {finding['message']}\n{finding['sql']}"


def _clean(text: str) -> str:
    return _NOT_XML.sub("�", text)
