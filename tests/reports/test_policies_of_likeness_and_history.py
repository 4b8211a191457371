"""Rules about copies, drift, labels and slices: when they fire, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest

from gradtrail.nouns import Coverage, ExampleInfluence, Finding, OutputResult, Share
from gradtrail.reports.policies.evaluation import evaluate
from gradtrail.reports.policies.facts import EarlierAudit, Likeness, PolicyFacts, RankedExample
from gradtrail.reports.policies.file import load_policy

Fired = Callable[..., list[Finding]]


def share(value: str, part: float, output_id: str | None = None, low: float | None = None, high: float | None = None):
    return Share(output_id, "proponent", "source", value, part, 0.5, low, high)


FACTS = PolicyFacts(
    results=(OutputResult("inbox:1", "7", 0.1, True, 1.0, 0.5), OutputResult("api:2", "9", 0.1, False, 1.0, 0.5)),
    shares=(
        share("web", 0.4, low=0.3, high=0.5),
        share("lab", 0.6, low=0.5, high=0.7),
        share("web", 0.7, "inbox:1"),
        share("lab", 0.3, "inbox:1"),
        share("web", 0.1, "api:2"),
        share("lab", 0.9, "api:2"),
    ),
    proponents={
        "inbox:1": (
            RankedExample("a", 1, 0.2, {"source": "web"}),
            RankedExample("b", 2, 0.15, {"source": "lab"}),
            RankedExample("c", 3, 0.1, {"source": "web"}),
        ),
        "api:2": (RankedExample("a", 1, 0.1, {"source": "web"}),),
    },
    opponents={
        "inbox:1": (RankedExample("x", 1, 0.3, {"label": "1"}), RankedExample("y", 2, 0.25, {"label": "7"})),
        "api:2": (RankedExample("x", 1, 0.4, {"label": "1"}), RankedExample("z", 2, 0.3, {})),
    },
    coverage=Coverage(1, 1, (), 100, 100),
    suspects=(ExampleInfluence("x", "opponent", 1, 0.3), ExampleInfluence("z", "opponent", 2, 0.2)),
    likeness={
        "inbox:1": Likeness(
            frozenset({"b"}), {"a": 0.9995, "b": 0.97, "c": 0.2}, (("a", "c", 0.999), ("b", "c", 0.95))
        ),
        "api:2": Likeness(frozenset(), {"a": 0.4}),
    },
    self_influences=(("x", 25.0), ("a", 12.0), ("z", 3.0)),
    attributes={"x": {"source": "web"}, "z": {"source": "lab"}, "a": {"source": "lab"}},
    output_sources={"inbox:1": "inbox", "api:2": "api"},
)


def history(*parts: float) -> tuple[EarlierAudit, ...]:
    return tuple(
        EarlierAudit(f"{place:064x}", (share("web", part), share("lab", 1 - part))) for place, part in enumerate(parts)
    )


@pytest.fixture
def fired(tmp_path: Path) -> Fired:
    def evaluate_rule(keys: str, facts: PolicyFacts = FACTS) -> list[Finding]:
        path = tmp_path / "policy.toml"
        path.write_text(f"[rules.mine]\nseverity = 'medium'\n{keys}", encoding="utf-8")
        return evaluate(load_policy(path), facts)

    return evaluate_rule


def test_near_copies_count_as_one_example(fired: Fired) -> None:
    keys = "kind = 'one_example_dominates'\nlimit = {}\nnear_copies = {}"
    (pair,) = fired(keys.format(0.25, 0.99))
    assert pair.evidence["example_ids"] == ["a", "c"]
    assert pair.evidence["share"] == pytest.approx(0.3)
    assert pair.message.startswith("One training example, a, and 1 near-copy of it carry 30.0% of all support")
    (chain,) = fired(keys.format(0.25, 0.9))
    assert chain.evidence["example_ids"] == ["a", "b", "c"]
    assert "2 near-copies of it carry 45.0%" in chain.message
    assert fired(keys.format(0.25, 0.9999)) == fired("kind = 'one_example_dominates'\nlimit = 0.25") == []


def test_the_same_input_or_nearly_the_same_gradient_is_a_copy_of_the_output(fired: Fired) -> None:
    (finding,) = fired("kind = 'copies_of_output'")
    assert finding.output_id == "inbox:1"
    assert finding.evidence["same_inputs"] == ["b"]
    assert finding.evidence["example_ids"] == ["b", "a"]
    assert "exactly the input of this output: b (rank 2, 15.0%)" in finding.message
    assert "a cosine of 0.999 or more): a (rank 1, 20.0%)" in finding.message
    (strict,) = fired("kind = 'copies_of_output'\ncosine = 1.0")
    assert strict.evidence["example_ids"] == ["b"]
    (first,) = fired("kind = 'copies_of_output'\ntop = 1")
    assert first.evidence["example_ids"] == ["a"]
    assert fired("kind = 'copies_of_output'", replace(FACTS, likeness={})) == []


def test_drift_is_more_than_the_spread_of_the_last_audits(fired: Fired) -> None:
    keys = "kind = 'share_drift'\nattribute = 'source'\nvalue = 'web'\nleast_change = 0.01\n"
    earlier = (0.20, 0.22, 0.24)
    (finding,) = fired(keys, replace(FACTS, earlier=history(*earlier)))
    assert finding.evidence["allowed"] == pytest.approx(3 * 0.02 * sqrt(1 + 1 / 3))
    assert finding.evidence["earlier_mean"] == pytest.approx(0.22)
    assert "carry 40.0% of the support for the audited outputs" in finding.message
    assert "In the last 3 audits of this model it was 22.0% on average (20.0% to 24.0%)" in finding.message
    assert fired(keys, replace(FACTS, earlier=history(0.4, 0.4, 0.4))) == []
    assert fired(keys.replace("0.01", "0.19"), replace(FACTS, earlier=history(*earlier))) == []
    assert fired(keys, replace(FACTS, earlier=history(0.20, 0.22))) == [], "two audits have no spread worth the name"
    assert fired(keys, replace(FACTS, earlier=history(0.1, 0.3, 0.5))) == []


def test_drift_looks_at_the_newest_audits_only(fired: Fired) -> None:
    keys = "kind = 'share_drift'\nattribute = 'source'\nvalue = 'web'\naudits = 3\nleast_change = 0.01"
    earlier = replace(FACTS, earlier=history(0.4, 0.41, 0.39, 0.0, 0.0, 0.0))
    assert fired(keys, earlier) == []
    assert len(fired(keys, replace(FACTS, earlier=earlier.earlier[3:]))) == 1


def test_drift_can_take_chance_as_its_tolerance_and_sees_values_that_came_or_went(fired: Fired) -> None:
    keys = "kind = 'share_drift'\nattribute = 'source'\ntolerance = 'interval'\nlimit = {}\nleast_change = 0.0"
    assert {each.evidence["value"] for each in fired(keys.format(1.5), replace(FACTS, earlier=history(0.2)))} == {
        "web",
        "lab",
    }
    assert fired(keys.format(2.5), replace(FACTS, earlier=history(0.2))) == []
    gone = (EarlierAudit("e" * 64, (share("archive", 0.8), share("lab", 0.2))),)
    found = {each.evidence["value"]: each for each in fired(keys.format(1), replace(FACTS, earlier=gone))}
    assert set(found) == {"archive", "lab", "web"}
    assert found["archive"].evidence["share"] == 0.0
    unmeasured = (EarlierAudit("e" * 64, ()),)
    assert fired(keys.format(1), replace(FACTS, earlier=unmeasured)) == []


def test_labels_are_suspect_by_self_influence_or_by_opposing_with_another_label(fired: Fired) -> None:
    (learnt,) = fired("kind = 'suspect_labels'\nmeasure = 'self_influence'\nlimit = 10")
    assert learnt.evidence["example_ids"] == ["x", "a"]
    assert "had to learn 2 training examples by heart" in learnt.message
    assert fired("kind = 'suspect_labels'\nmeasure = 'self_influence'\nlimit = 30") == []
    (opposed,) = fired("kind = 'suspect_labels'\nmeasure = 'other_label'\nlimit = 0.2")
    assert opposed.evidence["example_ids"] == ["x"], "y has the same label, z has none"
    assert opposed.evidence["output_ids"] == ["api:2", "inbox:1"]
    assert "1 training example with another label than the output carries more than 20.0%" in opposed.message
    assert "x (label “1”, up to 40.0%)" in opposed.message
    assert fired("kind = 'suspect_labels'\nmeasure = 'other_label'\nlimit = 0.4") == []


def test_a_slice_of_the_outputs_has_its_own_mean_share(fired: Fired) -> None:
    keys = "kind = 'share_above'\nattribute = 'source'\nvalue = 'web'\nlimit = 0.5\n"
    assert fired(keys) == []
    (finding,) = fired(keys + "only_outputs = { source = 'inbox' }")
    assert finding.evidence["share"] == pytest.approx(0.7)
    assert finding.evidence["only_outputs"] == {"source": "inbox"}
    assert finding.message.startswith("Among outputs with source “inbox”: training examples with source “web”")
    (by_prediction,) = fired("kind = 'not_reproduced'\nonly_outputs = { prediction = '9' }")
    assert by_prediction.output_id == "api:2"
    assert fired("kind = 'not_reproduced'\nonly_outputs = { prediction = '9', source = 'inbox' }") == []


def test_a_slice_of_the_examples_leaves_the_others_out(fired: Fired) -> None:
    keys = "kind = 'one_example_dominates'\nlimit = 0.12\n"
    assert [finding.evidence["example_id"] for finding in fired(keys)] == ["a"]
    (finding,) = fired(keys + "only_examples = { source = 'lab' }")
    assert (finding.evidence["example_id"], finding.evidence["share"]) == ("b", 0.15)
    (suspect,) = fired("kind = 'suspect_labels'\nlimit = 10\nonly_examples = { source = 'lab' }")
    assert suspect.evidence["example_ids"] == ["z"]
    (learnt,) = fired(
        "kind = 'suspect_labels'\nmeasure = 'self_influence'\nlimit = 10\nonly_examples = {source = 'lab'}"
    )
    assert learnt.evidence["example_ids"] == ["a"]
    assert "Among examples with source “lab”: the model had to learn" in learnt.message
