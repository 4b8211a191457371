"""Findings as test results: what CI systems read, and what it says."""

from datetime import UTC, datetime
from xml.etree import ElementTree

from gradtrail.nouns import Finding
from gradtrail.reports.verdicts import AuditVerdict, junit_xml, verdict_document

AUDIT = AuditVerdict(
    "ab" * 32,
    "digits/3",
    datetime(2026, 11, 1, 12, tzinfo=UTC),
    ("withdrawn", "fidelity", "unlicensed"),
    (
        Finding("withdrawn", "high", "Data <that> was \x00 withdrawn", "inbox:1", {"kind": "not_reproduced"}),
        Finding("fidelity", "low", "It is low.", None, {"kind": "fidelity_below"}),
        Finding("of-an-older-policy", "medium", "Medium.", None, {"kind": "coverage_below"}),
    ),
)


def test_a_rule_is_a_case_that_fails_by_severity():
    document = verdict_document([AUDIT], "medium")
    [suite] = document["suites"]
    assert (document["tests"], document["failures"], document["fail_on"]) == (4, 2, "medium")
    assert {case["rule"]: case["passed"] for case in suite["cases"]} == {
        "withdrawn": False,
        "fidelity": True,
        "unlicensed": True,
        "of-an-older-policy": False,
    }
    assert verdict_document([AUDIT], "high")["failures"] == 1
    assert verdict_document([AUDIT], "low")["failures"] == 3
    assert verdict_document([], "high")["tests"] == 0


def test_the_xml_is_well_formed_and_says_the_same():
    root = ElementTree.fromstring(junit_xml(verdict_document([AUDIT], "medium")))  # noqa: S314 - our own text
    [suite] = root.findall("testsuite")
    assert (root.get("tests"), root.get("failures"), suite.get("failures")) == ("4", "2", "2")
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    failure = cases["withdrawn"].find("failure")
    assert failure.get("type") == "high"
    assert failure.get("message") == "Data <that> was � withdrawn"
    assert "SELECT output_id" in failure.text
    assert cases["fidelity"].find("failure") is None
    assert "It is low." in cases["fidelity"].find("system-out").text
    assert list(cases["unlicensed"]) == []
