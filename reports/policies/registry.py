"""What a policy rule is, and the registry that finds one by its kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gradtrail.nouns import Finding, Severity
from gradtrail.registry import Registry
from gradtrail.reports.formats import count
from gradtrail.reports.policies.facts import PolicyFacts

OUTPUT_SLICES = ("prediction", "source")
_NAMED_IN_MESSAGE = 3


@dataclass(frozen=True)
class Rule:
    """One rule of a policy. `options` holds every key of its kind, with defaults filled in."""

    name: str
    kind: str
    severity: Severity
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Option:
    """What one key of a rule may hold.

    `shape` is `number`, `whole`, `text`, `texts`, `choice` or `slice`; `default` is None where the key must be given;
    `low` and `high` bound numbers; `choices` are the words of a choice, or the attributes a slice may name.
    """

    shape: str
    default: Any = None
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()


Test = Callable[[Rule, PolicyFacts], Iterator[Finding]]


@dataclass(frozen=True)
class RuleKind:
    """A kind of rule: the keys it understands beside `kind` and `severity`, and the test that makes its findings."""

    name: str
    options: Mapping[str, Option]
    test: Test


RULES: Registry[str, RuleKind] = Registry(
    "gradtrail.reports.policies.shares", "gradtrail.reports.policies.examples", "gradtrail.reports.policies.trust"
)
"""Every kind of rule by its name; those of other packages by `module:function`."""

TOP = Option("whole", 10, low=1)
SIDE = Option("choice", "proponent", choices=("proponent", "opponent"))
FRACTION = Option("number", low=0, high=1)
OF_OUTPUTS: Mapping[str, Option] = {"only_outputs": Option("slice", (), choices=OUTPUT_SLICES)}
OF_BOTH: Mapping[str, Option] = {**OF_OUTPUTS, "only_examples": Option("slice", ())}


def policy_rule(**options: Option) -> Callable[[Test], Test]:
    """Register the decorated function as a kind of rule with these options, under its own name.

    The function gets the rule, with every option filled in, and the facts of one audit; it yields findings. One of
    another package is registered under `module:function`, which a policy file names as its kind.
    """

    def register(test: Test) -> Test:
        own = test.__module__.startswith("gradtrail.")
        name = test.__name__ if own else f"{test.__module__}:{test.__name__}"
        RULES.add(name, RuleKind(name, options, test))
        return test

    return register


def finding(rule: Rule, message: str, output_id: str | None = None, **evidence: Any) -> Finding:
    """A finding of a rule; its evidence names the kind of the rule."""
    return Finding(rule.name, rule.severity, message, output_id, {"kind": rule.kind, **evidence})


def listed(names: list[str] | tuple[str, ...]) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - _NAMED_IN_MESSAGE
    return ", ".join(names[:_NAMED_IN_MESSAGE]) + (f" and {count(rest)} more" if rest > 0 else "")
