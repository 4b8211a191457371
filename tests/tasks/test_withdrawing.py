"""What the ledger says was withdrawn is flagged by the default policy."""

from gradtrail.lineage.events.withdrawals import Withdrawn
from gradtrail.nouns import Attribution, Coverage, OutputResult
from gradtrail.reports.policies.evaluation import evaluate
from gradtrail.reports.policies.file import load_policy
from gradtrail.tasks.audit.facts import policy_facts


def _withdrawn_findings(withdrawn):
    facts = policy_facts(
        [OutputResult("inbox:1", "seven", 0.1, True, 4.0, -1.0)],
        [
            Attribution("inbox:1", "a", "proponent", 1, 3.0),
            Attribution("inbox:1", "b", "proponent", 2, 1.0),
            Attribution("inbox:1", "c", "opponent", 1, -1.0),
        ],
        [],
        [],
        {name: {"source": source, "licence": "MIT"} for name, source in (("a", "forum"), ("b", "lab"), ("c", "forum"))},
        Coverage(10, 10, (), 3, 3),
        None,
        withdrawn,
    )
    return [finding for finding in evaluate(load_policy(None), facts) if finding.rule == "withdrawn-data"]


def test_a_withdrawn_source_and_a_withdrawn_example_among_the_strongest_are_findings():
    [by_source] = _withdrawn_findings(Withdrawn({"source": frozenset({"forum"})}, frozenset()))
    [by_example] = _withdrawn_findings(Withdrawn({}, frozenset({"b"})))
    assert (by_source.severity, by_source.evidence["example_ids"]) == ("high", ["a"])
    assert by_source.evidence["share"] == 0.75
    assert by_example.evidence["example_ids"] == ["b"]


def test_nothing_withdrawn_is_nothing_found():
    assert _withdrawn_findings(None) == []
    assert _withdrawn_findings(Withdrawn({"source": frozenset({"elsewhere"})}, frozenset({"c"}))) == []
