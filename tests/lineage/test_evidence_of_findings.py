"""The SQL of a finding shows rows of a real ledger, for every kind of rule, with any text in ids and values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.sql.answering import run_sql
from gradtrail.nouns import Finding, Share
from gradtrail.reports.policies.evaluation import evaluate
from gradtrail.reports.policies.facts import PolicyFacts
from gradtrail.reports.policies.file import Policy
from gradtrail.reports.policies.registry import RULES, Rule
from gradtrail.reports.policies.sql import evidence_sql


def _first(ledger: Ledger, statement: str) -> Any:
    return run_sql(ledger.paths.snapshot, statement).to_pylist()[0]


@pytest.mark.parametrize("kind", sorted(RULES))
def test_every_kind_of_rule_shows_its_evidence(kind: str, story_ledger: Ledger) -> None:
    audit_id = _first(story_ledger, "SELECT audit_id FROM audit")["audit_id"]
    share = _first(story_ledger, "SELECT * FROM share WHERE output_id IS NULL AND side = 'proponent'")
    kept = _first(story_ledger, "SELECT * FROM attribution WHERE side = 'proponent'")
    against = _first(story_ledger, "SELECT * FROM example_influence WHERE side = 'opponent'")
    named = {name: share[name] for name in ("attribute", "value", "side")}
    evidence: dict[str, dict[str, Any]] = {
        "share_above": named,
        "share_drift": {**named, "earlier_audits": ["it's gone"]},
        "one_example_dominates": {"example_ids": [kept["example_id"]]},
        "copies_of_output": {"cosines": {kept["example_id"]: 1.0, "it's": 0.5}, "same_inputs": [kept["example_id"]]},
        "suspect_labels": {"example_ids": [against["example_id"]], "measure": "opposition"},
    }
    of_output = kind not in ("share_above", "share_drift", "coverage_below", "fidelity_below", "suspect_labels")
    rests_on = evidence.get(kind, {"example_ids": [kept["example_id"], "it's"]})
    finding = Finding("mine", "low", "", kept["output_id"] if of_output else None, {"kind": kind, **rests_on})
    assert run_sql(story_ledger.paths.snapshot, evidence_sql(audit_id, finding)).num_rows > 0


@pytest.mark.parametrize("measure", ["self_influence", "other_label"])
def test_the_other_measures_of_labels_show_theirs(measure: str, story_ledger: Ledger) -> None:
    audit_id = _first(story_ledger, "SELECT audit_id FROM audit")["audit_id"]
    against = _first(story_ledger, "SELECT * FROM attribution WHERE side = 'opponent'")
    evidence = {"example_ids": [against["example_id"]], "multiples": [11.5], "measure": measure, "limit": 0.0}
    finding = Finding("mine", "low", "", None, {"kind": "suspect_labels", **evidence})
    assert run_sql(story_ledger.paths.snapshot, evidence_sql(audit_id, finding)).num_rows >= 1


def test_the_mean_share_of_a_slice_is_computed_again(story_ledger: Ledger) -> None:
    audit_id = _first(story_ledger, "SELECT audit_id FROM audit")["audit_id"]
    single = _first(story_ledger, "SELECT * FROM share WHERE output_id IS NOT NULL")
    evidence = {name: single[name] for name in ("attribute", "value", "side")} | {"only_outputs": {"source": "inbox"}}
    finding = Finding("mine", "low", "", None, {"kind": "share_above", **evidence})
    (found,) = run_sql(story_ledger.paths.snapshot, evidence_sql(audit_id, finding)).to_pylist()
    assert found["outputs"] >= 1
    assert 0 <= found["share"] <= 1


def test_outputs_of_a_slice_without_any_share_count_as_none(story, empty_ledger: Ledger) -> None:
    results = [replace(story.evidence["results"][0], output_id=f"inbox:{number}") for number in range(4)]
    results[3] = replace(results[3], prediction="a one")
    audit = replace(story.audit, outputs=tuple((result.output_id, "emitted") for result in results))
    shares = [
        Share(output_id, "proponent", "source", "forum", share, 0.5)
        for output_id, share in ((None, 0.4), ("inbox:0", 0.75), ("inbox:3", 0.85))
    ]
    replace(story, audit=audit, evidence={**story.evidence, "results": results, "shares": shares}).record(empty_ledger)
    empty_ledger.publish_snapshot()
    options = {name: option.default for name, option in RULES["share_above"].options.items()}
    options |= {"attribute": "source", "limit": 0.1, "only_outputs": {"prediction": "a seven"}}
    facts = PolicyFacts(tuple(results), tuple(shares), {}, story.index.coverage)
    [finding] = evaluate(Policy((Rule("mine", "share_above", "low", options),)), facts)
    found = _first(empty_ledger, evidence_sql(audit.audit_id, finding))
    assert found == {"value": "forum", "outputs": 3, "share": finding.evidence["share"], "training_share": 0.5}
    assert found["share"] == 0.25


def test_a_kind_of_another_gradtrail_shows_none() -> None:
    assert evidence_sql("a" * 64, Finding("mine", "low", "", None, {"kind": "of_the_future"})) == ""
