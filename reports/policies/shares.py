"""Rules about shares: how much of the influence an attribute value has, and how that moved since earlier audits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import sqrt
from statistics import mean, stdev
from typing import Any

from gradtrail.nouns import Finding, Share
from gradtrail.reports.formats import percent, plural, ratio
from gradtrail.reports.policies.facts import PolicyFacts
from gradtrail.reports.policies.file import LEAST_FOR_SPREAD
from gradtrail.reports.policies.registry import OF_OUTPUTS, SIDE, Option, Rule, finding, policy_rule

_LEAST_AUDITS = {"spread": LEAST_FOR_SPREAD, "interval": 1}


@policy_rule(
    attribute=Option("text"),
    value=Option("text", "*"),
    limit=Option("number", low=0),
    measure=Option("choice", "share", choices=("share", "ratio", "ratio_above_interval")),
    scope=Option("choice", "overall", choices=("overall", "output")),
    side=SIDE,
    **OF_OUTPUTS,
)
def share_above(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    """An attribute value has more of the influence than it may, in shares or beyond what its size explains."""
    options = rule.options
    tested = sum(
        share.output_id is None and share.interval_high is not None and _is_of_rule(share, options)
        for share in facts.shares
    )
    for share in facts.shares:
        in_scope = (share.output_id is None) == (options["scope"] == "overall")
        if _is_wanted(share, options) and in_scope and _is_above(share, options):
            yield finding(
                rule,
                _above_message(share, options, tested),
                share.output_id,
                attribute=share.attribute,
                value=share.value,
                side=share.side,
                measure=options["measure"],
                limit=options["limit"],
                share=share.share,
                training_share=share.training_share,
                ratio=share.ratio,
                **({"tested": tested} if options["measure"] == "ratio_above_interval" else {}),
            )


@policy_rule(
    attribute=Option("text"),
    value=Option("text", "*"),
    audits=Option("whole", 5, low=1, high=100),
    tolerance=Option("choice", "spread", choices=("spread", "interval")),
    limit=Option("number", 3.0, low=0),
    least_change=Option("number", 0.05, low=0, high=1),
    side=SIDE,
)
def share_drift(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    """The share of an attribute value is not what it was in the last audits of the same model."""
    options = rule.options
    earlier = [
        {share.value: share.share for share in audit.shares if _is_wanted(share, options)}
        for audit in facts.earlier[: options["audits"]]
        if any(share.attribute == options["attribute"] for share in audit.shares)
    ]
    if len(earlier) < _LEAST_AUDITS[options["tolerance"]]:
        return
    now = {share.value: share for share in facts.shares if share.output_id is None and _is_wanted(share, options)}
    if not now:
        return
    for value in sorted(now.keys() | {value for shares in earlier for value in shares}):
        before = [shares.get(value, 0.0) for shares in earlier]
        share = now.get(value) or Share(None, options["side"], options["attribute"], value, 0.0, 0.0)
        allowed = max(options["least_change"], options["limit"] * _tolerance(options["tolerance"], share, before))
        if abs(share.share - mean(before)) > allowed:
            yield finding(
                rule,
                f"Training examples with {_whose(share)} carry {percent(share.share)} of the {_what(share)} "
                f"the audited outputs. In the last {plural(len(before), 'audit')} of this model it was "
                f"{percent(mean(before))} on average ({percent(min(before))} to {percent(max(before))}). "
                f"A change of up to {percent(allowed)} would have been ordinary: look for what is new in the outputs "
                "or in the training data.",
                attribute=share.attribute,
                value=value,
                side=share.side,
                share=share.share,
                earlier=before,
                earlier_mean=mean(before),
                earlier_audits=[audit.audit_id for audit in facts.earlier[: options["audits"]]],
                allowed=allowed,
            )


def _tolerance(kind: str, share: Share, before: list[float]) -> float:
    if kind == "spread":
        # Standard error of one more audit against the mean of n others.
        return stdev(before) * sqrt(1 + 1 / len(before))
    if share.interval_low is None or share.interval_high is None:
        return 0.0
    return (share.interval_high - share.interval_low) / 2


def _is_wanted(share: Share, options: Mapping[str, Any]) -> bool:
    return _is_of_rule(share, options) and options["value"] in ("*", share.value)


def _is_of_rule(share: Share, options: Mapping[str, Any]) -> bool:
    return bool(share.attribute == options["attribute"] and share.side == options["side"])


def _is_above(share: Share, options: Mapping[str, Any]) -> bool:
    limit: float = options["limit"]
    if options["measure"] == "share":
        return share.share > limit
    if options["measure"] == "ratio":
        return share.ratio > limit
    return share.interval_high is not None and share.share > share.interval_high and share.ratio > limit


def _above_message(share: Share, options: Mapping[str, Any], tested: int) -> str:
    whom = "the audited outputs" if share.output_id is None else "this output"
    message = (
        f"Training examples with {_whose(share)} carry {percent(share.share)} of the {_what(share)} {whom} "
        f"and make up {percent(share.training_share)} of the training set"
    )
    if options["measure"] == "share":
        return f"{message}. The limit is {percent(options['limit'])}."
    message = f"{message}: {ratio(share.ratio)} what their number explains"
    if share.interval_low is not None and share.interval_high is not None:
        message = f"{message}, where chance alone gives {percent(share.interval_low)} to {percent(share.interval_high)}"
    if options["measure"] == "ratio_above_interval":
        message = f"{message} ({plural(tested, 'value')} tested)"
    return f"{message}. The limit is {options['limit']:g}×."


def _whose(share: Share) -> str:
    return f"{share.attribute} “{share.value}”" if share.value else f"no {share.attribute}"


def _what(share: Share) -> str:
    return "support for" if share.side == "proponent" else "opposition to"
