from __future__ import annotations

from pathlib import Path

import pytest

from gradtrail.errors import NotFoundError, UsageError
from gradtrail.reports.policies.file import DEFAULT_POLICY, load_policy
from gradtrail.reports.policies.registry import RULES


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def rule(**keys: str) -> str:
    return "[rules.mine]\n" + "\n".join(f"{key} = {value}" for key, value in keys.items())


def test_the_built_in_policy_uses_every_kind_of_rule() -> None:
    policy = load_policy(None)
    assert {each.kind for each in policy.rules} == set(RULES)
    assert policy == load_policy(DEFAULT_POLICY)


def test_the_digest_covers_what_is_asked_and_not_how_it_is_written(tmp_path: Path) -> None:
    plain = load_policy(written(tmp_path, rule(kind='"not_reproduced"', severity='"high"')))
    spaced = load_policy(written(tmp_path, "# why\n\n" + rule(severity="'high'", kind="'not_reproduced'") + "\n"))
    other = load_policy(written(tmp_path, rule(kind='"not_reproduced"', severity='"low"')))
    assert plain.sha256 == spaced.sha256 != other.sha256
    assert len(plain.sha256) == 64


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    path = written(tmp_path, rule(kind='"share_above"', severity='"low"', attribute='"licence"', limit="0.4"))
    (share_above,) = load_policy(path).rules
    assert share_above.options == {
        "attribute": "licence",
        "value": "*",
        "limit": 0.4,
        "measure": "share",
        "scope": "overall",
        "side": "proponent",
        "only_outputs": (),
    }


def test_an_empty_file_is_a_policy_without_rules(tmp_path: Path) -> None:
    assert load_policy(written(tmp_path, "")).rules == ()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere\.toml"):
        load_policy(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = = 1", r"is not TOML: .*line 1"),
        (b"\xff\xfe", "is not TOML"),
        ("[rule.mine]\nkind = 'not_reproduced'", "unknown key 'rule' at its top.*rules.its-name"),
        ("rules = 3", "holds no tables"),
        ("[rules]\nmine = 3", "holds no tables"),
        (rule(kind='"not_reproduced"'), "rule 'mine' has no 'severity'"),
        (rule(severity='"high"'), "rule 'mine' has no 'kind'"),
        (rule(kind='"share_abov"', severity='"high"'), "unknown kind 'share_abov'.*Did you mean 'share_above'"),
        (rule(kind='"not_reproduced"', severity='"hgih"'), "unknown severity 'hgih'.*Did you mean 'high'"),
        (rule(kind='"not_reproduced"', severity="3"), "unknown severity 3.*high, medium, low, info"),
        (
            rule(kind='"one_example_dominates"', severity='"high"', limt="0.5"),
            "unknown key 'limt' for kind 'one_example_dominates'.*Did you mean 'limit'",
        ),
        (rule(kind='"not_reproduced"', severity='"high"', limit="0.5"), "unknown key 'limit'"),
        (rule(kind='"one_example_dominates"', severity='"high"'), "has no 'limit'"),
        (rule(kind='"one_example_dominates"', severity='"high"', limit="1.5"), "limit = 1.5.*at most 1"),
        (rule(kind='"one_example_dominates"', severity='"high"', limit='"0.5"'), "limit = '0.5'.*a number"),
        (rule(kind='"one_example_dominates"', severity='"high"', limit="true"), "limit = True"),
        (rule(kind='"suspect_labels"', severity='"high"', limit="nan"), "limit = nan"),
        (rule(kind='"suspect_labels"', severity='"high"', limit="inf"), "limit = inf"),
        (rule(kind='"fidelity_below"', severity='"high"', limit="-2"), "limit = -2.*at least -1"),
        (rule(kind='"unknown_among_top"', severity='"high"', attribute='""'), "attribute = ''.*not empty"),
        (rule(kind='"unknown_among_top"', severity='"high"', attribute='"source"', top="0"), "top = 0.*whole number"),
        (rule(kind='"unknown_among_top"', severity='"high"', attribute='"source"', top="2.5"), "top = 2.5"),
        (rule(kind='"unknown_among_top"', severity='"high"', attribute='"source"', values="[3]"), r"values = \[3\]"),
        (rule(kind='"coverage_below"', severity='"high"', of='"layers"', limit="1"), "unknown of 'layers'"),
        (rule(kind='"coverage_below"', severity='"high"', limit="1"), "has no 'of'"),
        (rule(kind='"share_above"', severity='"low"', attribute='"source"', limit="2"), "limit 2 for a share"),
        (
            rule(kind='"share_above"', severity='"low"', attribute='"source"', limit="2", measure='"ratios"'),
            "unknown measure 'ratios'.*Did you mean 'ratio'",
        ),
        (
            rule(
                kind='"share_above"',
                severity='"low"',
                attribute='"source"',
                limit="2",
                measure='"ratio_above_interval"',
                scope='"output"',
            ),
            "measured for whole audits only.*overall",
        ),
        (rule(kind='"share_drift"', severity='"low"', attribute='"source"', audits="2"), "audits = 2, too few"),
        (rule(kind='"share_drift"', severity='"low"', attribute='"source"', audits="0"), "audits = 0.*at least 1"),
        (rule(kind='"share_drift"', severity='"low"', attribute='"source"', tolerance='"sigma"'), "unknown tolerance"),
        (rule(kind='"share_drift"', severity='"low"', attribute='"source"', least_change="2"), "least_change = 2"),
        (rule(kind='"copies_of_output"', severity='"low"', cosine="1.01"), "cosine = 1.01.*at most 1"),
        (rule(kind='"one_example_dominates"', severity='"low"', limit="0.2", near_copies="-1"), "near_copies = -1"),
        (rule(kind='"suspect_labels"', severity='"low"', limit="2", measure='"other_label"'), "limit 2 for a share"),
        (rule(kind='"suspect_labels"', severity='"low"', limit="2", measure='"opponents"'), "unknown measure"),
        (
            rule(kind='"suspect_labels"', severity='"low"', limit="2", only_outputs='{ source = "inbox" }'),
            "only_outputs, but 'opposition'",
        ),
        (rule(kind='"not_reproduced"', severity='"low"', only_outputs='"inbox"'), "only_outputs = 'inbox'.*name = "),
        (rule(kind='"not_reproduced"', severity='"low"', only_outputs="{}"), "only_outputs = {}"),
        (rule(kind='"not_reproduced"', severity='"low"', only_outputs="{ source = 3 }"), "only_outputs = "),
        (
            rule(kind='"not_reproduced"', severity='"low"', only_outputs='{ sorce = "inbox" }'),
            "unknown attribute in only_outputs 'sorce'.*Did you mean 'source'",
        ),
        (
            rule(kind='"not_reproduced"', severity='"low"', only_examples='{ source = "web" }'),
            "unknown key 'only_examples'",
        ),
        (
            rule(
                kind='"share_above"',
                severity='"low"',
                attribute='"source"',
                limit="2",
                measure='"ratio_above_interval"',
                only_outputs='{ source = "inbox" }',
            ),
            "only_outputs, but intervals are measured for whole audits only",
        ),
        (rule(kind='"withdrawn_among_top"', severity='"high"', attribute='"source"'), "has no 'values'"),
        (rule(kind='"withdrawn_among_top"', severity='"high"', values='["x"]'), "has no 'attribute'"),
    ],
)
def test_a_bad_policy_is_named_with_file_rule_and_key(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=message) as caught:
        load_policy(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy
