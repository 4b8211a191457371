"""Every TOML snippet of the documentation can be loaded as what it is: a policy, or settings."""

import re
from pathlib import Path

import pytest

from gradtrail.reports.policies.file import load_policy
from gradtrail.reports.policies.registry import RULES
from gradtrail.settings import load_settings

DOCS = Path(__file__).parents[2] / "docs"
SNIPPETS = [
    pytest.param(snippet, id=f"{page.stem}-{place}")
    for page in sorted(DOCS.glob("*.md"))
    for place, snippet in enumerate(re.findall(r"```toml\n(.*?)```", page.read_text("utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_is_a_policy_or_settings(snippet, tmp_path, monkeypatch):
    if snippet.lstrip().startswith("[rules."):
        path = tmp_path / "policy.toml"
        path.write_text(snippet, "utf-8")
        assert load_policy(path).rules
    else:
        (tmp_path / "gradtrail.toml").write_text(snippet, "utf-8")
        monkeypatch.chdir(tmp_path)
        load_settings()


def test_the_reference_has_every_kind_every_key_and_an_example_of_each(tmp_path):
    page = (DOCS / "reports.md").read_text("utf-8")
    for kind, options in ((name, rule.options) for name, rule in RULES.items()):
        [row] = [line for line in page.splitlines() if line.startswith(f"| `{kind}` |")]
        keys = {key for key in options if not key.startswith("only_")}
        assert {key for key in keys if f"`{key}`" not in row and key != "side"} == set()
    [policy] = [s for s in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if s.startswith("[rules.")]
    path = tmp_path / "policy.toml"
    path.write_text(policy, "utf-8")
    assert {rule.kind for rule in load_policy(path).rules} == set(RULES)
