"""The policy file: the rules an audit is held to, read strictly so that a slip of the pen switches no rule off."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from gradtrail.digests import sha256_json
from gradtrail.errors import NotFoundError, UsageError
from gradtrail.nouns import SEVERITIES, Finding, Severity
from gradtrail.reports.formats import count

DEFAULT_POLICY = Path(__file__).parents[1] / "templates" / "default_policy.toml"
OUTPUT_SLICES = ("prediction", "source")
LEAST_FOR_SPREAD = 3
_NAMED_IN_MESSAGE = 3


@dataclass(frozen=True)
class Rule:
    """One rule of a policy. `options` holds every key of its kind, with defaults filled in."""

    name: str
    kind: str
    severity: Severity
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Policy:
    """The rules of one policy file. `content` is the file as parsed, before defaults."""

    rules: tuple[Rule, ...]
    content: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Digest of the canonical JSON of the parsed content: comments and layout do not count."""
        return sha256_json(dict(self.content))


def finding(rule: Rule, message: str, output_id: str | None = None, **evidence: Any) -> Finding:
    """A finding of a rule; its evidence names the kind of the rule."""
    return Finding(rule.name, rule.severity, message, output_id, {"kind": rule.kind, **evidence})


def listed(names: list[str] | tuple[str, ...]) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - _NAMED_IN_MESSAGE
    return ", ".join(names[:_NAMED_IN_MESSAGE]) + (f" and {count(rest)} more" if rest > 0 else "")


@dataclass(frozen=True)
class _Option:
    """What one key of a rule may hold. `default` is None where the key must be given."""

    shape: str
    default: Any = None
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()


_TOP = _Option("whole", 10, low=1)
_SIDE = _Option("choice", "proponent", choices=("proponent", "opponent"))
_FRACTION = _Option("number", low=0, high=1)
_OF_OUTPUTS: Mapping[str, _Option] = {"only_outputs": _Option("slice", (), choices=OUTPUT_SLICES)}
_OF_BOTH: Mapping[str, _Option] = {**_OF_OUTPUTS, "only_examples": _Option("slice", ())}

RULE_KINDS: Mapping[str, Mapping[str, _Option]] = {
    "share_above": {
        "attribute": _Option("text"),
        "value": _Option("text", "*"),
        "limit": _Option("number", low=0),
        "measure": _Option("choice", "share", choices=("share", "ratio", "ratio_above_interval")),
        "scope": _Option("choice", "overall", choices=("overall", "output")),
        "side": _SIDE,
        **_OF_OUTPUTS,
    },
    "share_drift": {
        "attribute": _Option("text"),
        "value": _Option("text", "*"),
        "audits": _Option("whole", 5, low=1, high=100),
        "tolerance": _Option("choice", "spread", choices=("spread", "interval")),
        "limit": _Option("number", 3.0, low=0),
        "least_change": _Option("number", 0.05, low=0, high=1),
        "side": _SIDE,
    },
    "one_example_dominates": {"limit": _FRACTION, "near_copies": _Option("number", 0.0, low=0, high=1), **_OF_BOTH},
    "copies_of_output": {"cosine": _Option("number", 0.999, low=0, high=1), "top": _TOP, **_OF_BOTH},
    "withdrawn_among_top": {
        "attribute": _Option("text", ""),
        "values": _Option("texts", ()),
        "example_ids": _Option("texts", ()),
        "top": _TOP,
        **_OF_BOTH,
    },
    "unknown_among_top": {
        "attribute": _Option("text"),
        "values": _Option("texts", ("unknown",)),
        "top": _TOP,
        **_OF_BOTH,
    },
    "not_reproduced": {**_OF_OUTPUTS},
    "coverage_below": {"of": _Option("choice", choices=("parameters", "examples")), "limit": _FRACTION},
    "fidelity_below": {"limit": _Option("number", low=-1, high=1)},
    "suspect_labels": {
        "limit": _Option("number", low=0),
        "measure": _Option("choice", "opposition", choices=("opposition", "self_influence", "other_label")),
        "attribute": _Option("text", "label"),
        **_OF_BOTH,
    },
}


def load_policy(path: Path | None) -> Policy:
    """Read a policy file, or the built-in policy when `path` is None.

    Raises:
        NotFoundError: there is no such file.
        UsageError: not TOML, or an unknown or missing key, kind or severity, or a value out of range; the message names
            file, rule and key.
    """
    path = DEFAULT_POLICY if path is None else path
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NotFoundError(f"There is no policy file {path}.", "Check the path, or leave it out.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The policy file {path} is not TOML: {error}.", "Correct that line.") from error
    for key in content:
        if key != "rules":
            raise UsageError(
                f"The policy file {path} has an unknown key '{key}' at its top.", "Write each rule as [rules.its-name]."
            )
    rules = content.get("rules", {})
    if not isinstance(rules, dict) or not all(isinstance(table, dict) for table in rules.values()):
        raise UsageError(f"In the policy file {path}, 'rules' holds no tables.", "Write each rule as [rules.its-name].")
    return Policy(tuple(_rule(path, name, table) for name, table in rules.items()), content)


def _rule(path: Path, name: str, table: Mapping[str, Any]) -> Rule:
    where = f"In the policy file {path}, rule '{name}'"
    for key in ("kind", "severity"):
        if key not in table:
            raise UsageError(f"{where} has no '{key}'.", f'Add {key} = "…".')
    kind = _one_of(where, "kind", table["kind"], tuple(RULE_KINDS))
    severity = cast(Severity, _one_of(where, "severity", table["severity"], SEVERITIES))
    options = RULE_KINDS[kind]
    for key in table:
        if key not in options and key not in ("kind", "severity"):
            raise UsageError(
                f"{where} has an unknown key '{key}' for kind '{kind}'.", _suggestion(key, ("severity", *options))
            )
    values: dict[str, Any] = {}
    for key, option in options.items():
        if key in table:
            values[key] = _checked(where, key, table[key], option)
        elif option.default is None:
            raise UsageError(f"{where} of kind '{kind}' has no '{key}'.", f"Add {key} = …")
        else:
            values[key] = option.default
    _check_together(where, kind, values)
    return Rule(name, kind, severity, values)


def _check_together(where: str, kind: str, values: Mapping[str, Any]) -> None:
    if values.get("measure") == "ratio_above_interval" and (values["scope"] == "output" or values["only_outputs"]):
        cause = "scope 'output'" if values["scope"] == "output" else "only_outputs"
        raise UsageError(
            f"{where} tests 'ratio_above_interval' with {cause}, but intervals are measured for whole audits only.",
            'Set scope = "overall" without only_outputs, or measure = "ratio".',
        )
    if values.get("measure") == "share" and values["limit"] > 1:
        raise UsageError(f"{where} has limit {values['limit']} for a share.", "Give a share between 0 and 1.")
    if values.get("measure") == "other_label" and values["limit"] > 1:
        raise UsageError(
            f"{where} has limit {values['limit']} for a share of the opposition.", "Give a share between 0 and 1."
        )
    if values.get("measure") in ("opposition", "self_influence") and values["only_outputs"]:
        raise UsageError(
            f"{where} has only_outputs, but '{values['measure']}' is measured over all outputs or none.",
            'Leave it out, or set measure = "other_label".',
        )
    if kind == "share_drift" and values["tolerance"] == "spread" and values["audits"] < LEAST_FOR_SPREAD:
        raise UsageError(
            f"{where} has audits = {values['audits']}, too few to know their spread.",
            f'Give at least {LEAST_FOR_SPREAD}, or set tolerance = "interval".',
        )
    if kind == "withdrawn_among_top" and bool(values["attribute"]) != bool(values["values"]):
        missing = "values" if values["attribute"] else "attribute"
        raise UsageError(f"{where} has no '{missing}'.", "Give 'attribute' and 'values' together, or neither.")


def _checked(where: str, key: str, value: Any, option: _Option) -> Any:
    if option.shape == "choice":
        return _one_of(where, key, value, option.choices)
    if option.shape == "text" and isinstance(value, str) and value:
        return value
    if option.shape == "texts" and isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return tuple(value)
    if option.shape == "slice":
        return _slice(where, key, value, option)
    is_number = isinstance(value, int if option.shape == "whole" else int | float) and not isinstance(value, bool)
    if (
        option.shape in ("number", "whole")
        and is_number
        and math.isfinite(value)
        and option.low <= value <= option.high
    ):
        return value
    raise UsageError(f"{where} has {key} = {value!r}.", f"Give {_wanted(option)}.")


def _slice(where: str, key: str, value: Any, option: _Option) -> Mapping[str, str]:
    texts = isinstance(value, dict) and value and all(isinstance(item, str) and item for item in value.values())
    if not texts:
        raise UsageError(
            f"{where} has {key} = {value!r}.", f'Give attributes with their values: {key} = {{ name = "…" }}.'
        )
    for name in value:
        if option.choices:
            _one_of(where, f"attribute in {key}", name, option.choices)
    return dict(value)


def _wanted(option: _Option) -> str:
    if option.shape == "text":
        return "a text that is not empty"
    if option.shape == "texts":
        return "a list of texts that is not empty"
    bounds = [f"at least {option.low:g}"] if option.low > -math.inf else []
    bounds += [f"at most {option.high:g}"] if option.high < math.inf else []
    return " ".join(["a whole number" if option.shape == "whole" else "a number", " and ".join(bounds)]).strip()


def _one_of(where: str, key: str, value: Any, choices: tuple[str, ...]) -> str:
    if isinstance(value, str) and value in choices:
        return value
    raise UsageError(f"{where} has an unknown {key} {value!r}.", _suggestion(str(value), choices))


def _suggestion(word: str, choices: tuple[str, ...]) -> str:
    close = get_close_matches(word, choices, n=1)
    return (f"Did you mean '{close[0]}'? " if close else "") + "It may be: " + ", ".join(choices) + "."
