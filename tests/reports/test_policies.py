from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gradtrail.nouns import Coverage, ExampleInfluence, Fidelity, Finding, OutputResult, Share
from gradtrail.reports.policies.evaluation import evaluate
from gradtrail.reports.policies.facts import PolicyFacts, RankedExample
from gradtrail.reports.policies.file import load_policy

COVERAGE = Coverage(90, 100, ("norm.weight",), 990, 1000)
SHARES = (
    Share(None, "proponent", "licence", "unlicensed", 0.41, 0.12, 0.08, 0.16),
    Share(None, "proponent", "licence", "CC-BY-4.0", 0.59, 0.88, 0.55, 0.95),
    Share(None, "opponent", "licence", "unlicensed", 0.7, 0.12, 0.08, 0.16),
    Share("inbox:2", "proponent", "licence", "unlicensed", 0.62, 0.12),
)
PROPONENTS = {
    "inbox:1": (
        RankedExample("a", 1, 0.40, {"source": "archive"}),
        RankedExample("b", 2, 0.10, {"source": " "}),
        RankedExample("c", 3, 0.05, {}),
        RankedExample("d", 4, 0.04, {"source": "Unknown"}),
    ),
    "inbox:2": (RankedExample("a", 1, 0.20, {"source": "archive"}),),
    "inbox:3": (),
}
FACTS = PolicyFacts(
    results=(
        OutputResult("inbox:1", "7", 0.1, True, 1.0, 0.5),
        OutputResult("inbox:2", "9", 0.1, False, 1.0, 0.5),
    ),
    shares=SHARES,
    proponents=PROPONENTS,
    coverage=COVERAGE,
    suspects=(
        ExampleInfluence("x", "opponent", 1, 0.05),
        ExampleInfluence("y", "opponent", 2, 0.02),
        ExampleInfluence("z", "opponent", 3, 0.002),
        ExampleInfluence("w", "proponent", 1, 0.9),
    ),
)


@pytest.fixture
def fired(tmp_path: Path) -> Callable[..., list[Finding]]:
    def evaluate_rule(keys: str, facts: PolicyFacts = FACTS) -> list[Finding]:
        path = tmp_path / "policy.toml"
        path.write_text(f"[rules.mine]\nseverity = 'medium'\n{keys}", encoding="utf-8")
        return evaluate(load_policy(path), facts)

    return evaluate_rule


Fired = Callable[..., list[Finding]]


def test_a_share_above_its_limit_fires_once_a_value_and_names_the_numbers(fired: Fired) -> None:
    keys = "kind = 'share_above'\nattribute = 'licence'\nlimit = {}\n"
    (finding,) = fired(keys.format(0.5))
    assert finding.output_id is None
    assert finding.message == (
        "Training examples with licence “CC-BY-4.0” carry 59.0% of the support for the audited outputs and make up "
        "88.0% of the training set. The limit is 50.0%."
    )
    assert finding.evidence["share"] == 0.59
    assert finding.evidence["kind"] == "share_above"
    assert [each.evidence["value"] for each in fired(keys.format(0.4))] == ["CC-BY-4.0", "unlicensed"]
    assert fired(keys.format(0.59)) == []
    assert fired(keys.format(0.4) + "value = 'another'") == []
    assert fired(keys.format(0.4).replace("licence", "author")) == []


def test_a_share_of_opposition_is_its_own_question(fired: Fired) -> None:
    (finding,) = fired("kind = 'share_above'\nattribute = 'licence'\nlimit = 0.6\nside = 'opponent'")
    assert "70.0% of the opposition to" in finding.message


def test_a_share_can_be_tested_output_by_output(fired: Fired) -> None:
    keys = "kind = 'share_above'\nattribute = 'licence'\nscope = 'output'\nlimit = {}"
    (finding,) = fired(keys.format(0.6))
    assert finding.output_id == "inbox:2"
    assert "this output" in finding.message
    assert fired(keys.format(0.63)) == []


def test_a_ratio_sets_the_share_against_the_size(fired: Fired) -> None:
    keys = "kind = 'share_above'\nattribute = 'licence'\nmeasure = 'ratio'\nlimit = {}"
    (finding,) = fired(keys.format(2))
    assert finding.evidence["value"] == "unlicensed"
    assert "3.4× what their number explains" in finding.message
    assert fired(keys.format(3.5)) == []


def test_a_ratio_above_its_interval_needs_more_than_chance(fired: Fired) -> None:
    keys = "kind = 'share_above'\nattribute = 'licence'\nmeasure = 'ratio_above_interval'\nlimit = {}"
    (finding,) = fired(keys.format(1))
    assert finding.evidence["value"] == "unlicensed"
    assert "chance alone gives 8.0% to 16.0% (2 values tested). The limit" in finding.message
    assert finding.evidence["tested"] == 2
    assert fired(keys.format(4)) == []
    by_chance = replace(SHARES[0], interval_high=0.5)
    assert fired(keys.format(1), replace(FACTS, shares=(by_chance,))) == []
    unmeasured = replace(SHARES[0], interval_low=None, interval_high=None)
    assert fired(keys.format(1), replace(FACTS, shares=(unmeasured,))) == []


def test_one_example_that_dominates_is_named(fired: Fired) -> None:
    (finding,) = fired("kind = 'one_example_dominates'\nlimit = 0.3")
    assert (finding.output_id, finding.evidence["example_id"], finding.evidence["share"]) == ("inbox:1", "a", 0.4)
    assert "One training example, a, carries 40.0% of all support" in finding.message
    assert fired("kind = 'one_example_dominates'\nlimit = 0.4") == []


def test_withdrawn_examples_and_values_among_the_top_are_named(fired: Fired) -> None:
    keys = "kind = 'withdrawn_among_top'\n"
    assert fired(keys) == []
    (by_rule,) = fired(keys + "example_ids = ['b', 'c']\ntop = 2")
    assert by_rule.evidence["example_ids"] == ["b"]
    assert by_rule.message == (
        "1 of the 2 training examples that support this output most is withdrawn: b (rank 2, 10.0%)."
    )
    by_value = fired(keys + "attribute = 'source'\nvalues = ['archive']")
    assert [finding.output_id for finding in by_value] == ["inbox:1", "inbox:2"]
    (from_ledger,) = fired(keys, replace(FACTS, withdrawn_example_ids=frozenset({"d"})))
    assert from_ledger.evidence["example_ids"] == ["d"]
    assert len(fired(keys, replace(FACTS, withdrawn_values={"source": frozenset({"archive"})}))) == 2


def test_unknown_means_missing_blank_or_said_to_be_unknown(fired: Fired) -> None:
    keys = "kind = 'unknown_among_top'\nattribute = 'source'\n"
    (finding,) = fired(keys)
    assert finding.output_id == "inbox:1"
    assert finding.evidence["example_ids"] == ["b", "c", "d"]
    assert "3 of the 4 training examples that support this output most are of unknown source" in finding.message
    (other_words,) = fired(keys + "values = ['n/a']")
    assert other_words.evidence["example_ids"] == ["b", "c"]
    assert fired(keys + "top = 1") == []


def test_an_output_that_is_not_reproduced_is_named(fired: Fired) -> None:
    (finding,) = fired("kind = 'not_reproduced'")
    assert finding.output_id == "inbox:2"
    assert fired("kind = 'not_reproduced'", replace(FACTS, results=FACTS.results[:1])) == []
    unasked = tuple(replace(each, reproduced=None) for each in FACTS.results)
    assert fired("kind = 'not_reproduced'", replace(FACTS, results=unasked)) == []


def test_frozen_parameters_are_not_called_uncovered(fired: Fired) -> None:
    frozen = replace(FACTS, coverage=replace(COVERAGE, uncovered=("norm.weight", "body.weight (frozen)")))
    (finding,) = fired("kind = 'coverage_below'\nof = 'parameters'\nlimit = 0.95", frozen)
    assert "90.0% of the model’s trainable parameters (90 of 100)" in finding.message
    assert finding.message.endswith("Not covered: norm.weight.")


def test_coverage_of_parameters_and_examples_are_two_rules(fired: Fired) -> None:
    (parameters,) = fired("kind = 'coverage_below'\nof = 'parameters'\nlimit = 0.95")
    assert "90.0% of the model’s parameters (90 of 100)" in parameters.message
    assert "Not covered: norm.weight" in parameters.message
    (examples,) = fired("kind = 'coverage_below'\nof = 'examples'\nlimit = 1.0")
    assert "99.0% of the training examples" in examples.message
    assert "10 have no scores" in examples.message
    assert fired("kind = 'coverage_below'\nof = 'parameters'\nlimit = 0.9") == []
    assert fired("kind = 'coverage_below'\nof = 'examples'\nlimit = 0.99") == []


def test_fidelity_fires_when_low_and_as_information_when_not_measured(fired: Fired) -> None:
    keys = "kind = 'fidelity_below'\nlimit = 0.5"
    (unmeasured,) = fired(keys)
    assert (unmeasured.severity, unmeasured.evidence["measured"]) == ("info", False)
    fidelity = Fidelity("c", "influence", "w", "fidelity_subset", 0.41, 0.03, 0.9, 32)
    (low,) = fired(keys, replace(FACTS, fidelity=fidelity))
    assert low.severity == "medium"
    assert "0.410 ± 0.0300" in low.message
    assert fired(keys, replace(FACTS, fidelity=replace(fidelity, value=0.5))) == []


def test_suspects_are_counted_against_the_average_share(fired: Fired) -> None:
    (finding,) = fired("kind = 'suspect_labels'\nlimit = 10")
    assert finding.evidence["example_ids"] == ["x", "y"]
    assert finding.message.startswith("2 training examples work against many outputs at once, with more than 10 times")
    assert fired("kind = 'suspect_labels'\nlimit = 60") == []
    empty = replace(FACTS, coverage=replace(COVERAGE, indexed_examples=0))
    assert fired("kind = 'suspect_labels'\nlimit = 10", empty) == []


def test_findings_come_by_severity_then_rule_whatever_the_order_in_the_file(tmp_path: Path) -> None:
    blocks = [
        "[rules.b-low]\nkind = 'not_reproduced'\nseverity = 'low'\n",
        "[rules.z-high]\nkind = 'not_reproduced'\nseverity = 'high'\n",
        "[rules.a-low]\nkind = 'one_example_dominates'\nlimit = 0.1\nseverity = 'low'\n",
    ]
    orders = []
    for number, chosen in enumerate((blocks, blocks[::-1])):
        path = tmp_path / f"{number}.toml"
        path.write_text("\n".join(chosen), encoding="utf-8")
        orders.append([(finding.rule, finding.output_id) for finding in evaluate(load_policy(path), FACTS)])
    assert orders[0] == orders[1]
    assert orders[0] == [("z-high", "inbox:2"), ("a-low", "inbox:1"), ("a-low", "inbox:2"), ("b-low", "inbox:2")]


def test_the_built_in_policy_finds_nothing_in_an_audit_without_faults() -> None:
    clean = PolicyFacts(
        results=FACTS.results[:1],
        shares=SHARES[1:2],
        proponents={"inbox:1": (RankedExample("a", 1, 0.1, {"source": "archive", "licence": "CC-BY-4.0"}),)},
        coverage=Coverage(100, 100, (), 1000, 1000),
        fidelity=Fidelity("c", "influence", "w", "fidelity_subset", 0.8, 0.03, 0.9, 32),
    )
    assert evaluate(load_policy(None), clean) == []
