"""The policy file: the rules an audit is held to, read strictly so that a slip of the pen switches no rule off."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from gradtrail.digests import sha256_json
from gradtrail.errors import NotFoundError, UsageError
from gradtrail.nouns import SEVERITIES, Severity
from gradtrail.reports.policies.registry import RULES, Option, Rule

DEFAULT_POLICY = Path(__file__).parents[1] / "templates" / "default_policy.toml"
LEAST_FOR_SPREAD = 3


@dataclass(frozen=True)
class Policy:
    """The rules of one policy file. `content` is the file as parsed, before defaults."""

    rules: tuple[Rule, ...]
    content: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Digest of the canonical JSON of the parsed content: comments and layout do not count."""
        return sha256_json(dict(self.content))


def load_policy(path: Path | None, load: Callable[[str], object] | None = None) -> Policy:
    """Read a policy file, or the built-in policy when `path` is None.

    Args:
        path: the file.
        load: imports the module of a rule's kind `module:function`, where the settings allow it.

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
    return Policy(tuple(_rule(path, name, table, load) for name, table in rules.items()), content)


def _rule(path: Path, name: str, table: Mapping[str, Any], load: Callable[[str], object] | None) -> Rule:
    where = f"In the policy file {path}, rule '{name}'"
    for key in ("kind", "severity"):
        if key not in table:
            raise UsageError(f"{where} has no '{key}'.", f'Add {key} = "…".')
    kind = _kind(where, table["kind"], load)
    severity = cast(Severity, _one_of(where, "severity", table["severity"], SEVERITIES))
    options = RULES[kind].options
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


def _kind(where: str, kind: Any, load: Callable[[str], object] | None) -> str:
    if load is None or not isinstance(kind, str) or ":" not in kind:
        return _one_of(where, "kind", kind, tuple(name for name in RULES if ":" not in name))
    load(kind)
    if kind not in RULES:
        raise UsageError(f"{where} names {kind!r}, which is no policy rule.", "Decorate it with policy_rule().")
    return kind


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


def _checked(where: str, key: str, value: Any, option: Option) -> Any:
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


def _slice(where: str, key: str, value: Any, option: Option) -> Mapping[str, str]:
    texts = isinstance(value, dict) and value and all(isinstance(item, str) and item for item in value.values())
    if not texts:
        raise UsageError(
            f"{where} has {key} = {value!r}.", f'Give attributes with their values: {key} = {{ name = "…" }}.'
        )
    for name in value:
        if option.choices:
            _one_of(where, f"attribute in {key}", name, option.choices)
    return dict(value)


def _wanted(option: Option) -> str:
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
