"""What the commands about trust print: verifications, proofs, withdrawals, erasures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from gradtrail.digests import short
from gradtrail.printing import print_json, say

if TYPE_CHECKING:
    from gradtrail.lineage.chain.proof_check import Proven
    from gradtrail.lineage.events.withdrawals import Reach
    from gradtrail.tasks.govern.erasing import ErasureOutcome, ErasurePreview
    from gradtrail.tasks.govern.verifying import Verification
    from gradtrail.tasks.govern.withdrawing import WithdrawalOutcome

_MOST_SHOWN = 10


def show_verification(verification: Verification, *, as_json: bool) -> None:
    """What was checked, and the first bad thing before all others."""
    if as_json:
        return print_json(verification)
    checked = ", ".join(f"{count:,} {what}" for what, count in verification.checked.items() if count)
    if not verification.problems:
        unexplained = "Nothing was changed, dropped or added"
        erased = any("erased" in note for note in verification.notes)
        end = ", but for what was erased:" if erased else "."
        return say(f"Verified: {checked}.", unexplained + end, *verification.notes)
    out = Console(stderr=True, highlight=False)
    out.print(f"[bold red]{len(verification.problems)} problems[/] (checked {checked})")
    for problem in verification.problems:
        out.print(
            f"[red]{escape(problem.kind)}[/] {escape(problem.subject)}: {escape(problem.message)}", soft_wrap=True
        )
    for note in verification.notes:
        out.print(escape(note), soft_wrap=True)
    return None


def show_proof(proof: Mapping[str, Any], *, as_json: bool) -> None:
    """An inclusion proof: the JSON is the proof itself, the text says what is in it."""
    if as_json:
        return print_json(proof)
    rows = proof["rows"]
    lines = [f"  {row['digest'][:16]}…  {_row(row)}, {len(row['siblings'])} siblings" for row in rows]
    return say(
        f"Proof for output {proof['output_id']} in audit {proof['audit_id']}:",
        *lines,
        f"Merkle root of the audit: {proof['audit_root']}",
        f"Event {proof['event']['sequence']}: {proof['event_hash']}",
        "Save it with --json > proof.json; anyone who has the report checks it, without the ledger, with:",
        "  gradtrail verify --proof proof.json --report report.html",
    )


def show_proven(proven: Proven, *, as_json: bool) -> None:
    """A proof that holds."""
    if as_json:
        return print_json(proven)
    return say(
        f"The proof holds: {len(proven.rows)} rows about output {proven.output_id} are under the root that the report "
        "prints.",
        f"Merkle root: {proven.audit_root}",
        "It shows that none of them was changed; that none was left out, only the ledger can show.",
    )


def show_reach(reach: Reach) -> None:
    """How far examples reached, for people."""
    say(*_reach(reach))


def show_withdrawal(outcome: WithdrawalOutcome, *, as_json: bool) -> None:
    """A withdrawal, or what one would concern."""
    if as_json:
        return print_json({**asdict(outcome), "reaudit": _reaudit(outcome.reach)})
    if not outcome.withdrawal_id:
        return say(*_reach(outcome.reach), "Nothing was recorded: this was a dry run.")
    if not outcome.new:
        return say(f"Nothing new: withdrawal {short(outcome.withdrawal_id)} is in the ledger already.")
    return say(
        f"Withdrew {len(outcome.reach.examples):,} examples (withdrawal {short(outcome.withdrawal_id)}).",
        "Every later audit flags them among the examples that support an output most.",
        *_reaudit_lines(outcome.reach),
    )


def show_erasure_preview(preview: ErasurePreview, *, as_json: bool) -> None:
    """What would be erased."""
    if as_json:
        return print_json(preview)
    if not preview.erased:
        return say("Nothing: all of it was erased before.")
    return say(
        f"To be erased: {_listed(f'{kind} {name}' for kind, name in preview.erased)}.",
        *(f"  {count:,} rows of {table}" for table, count in preview.rows),
        *(f"  shown by report {path}, which will be written again" for path in preview.reports),
    )


def show_erasure(outcome: ErasureOutcome, *, as_json: bool) -> None:
    """What was erased, and where else it may be."""
    if as_json:
        return print_json(outcome)
    if not outcome.erased:
        return say("Nothing to erase.")
    return say(
        f"Erased by event {', '.join(map(str, outcome.events))}: "
        f"{_listed(f'{kind} {name}' for kind, name in outcome.erased)}.",
        *(f"  {count:,} rows of {table}" for table, count in outcome.rows),
        f"  {outcome.payloads:,} payloads, {outcome.inbox_records:,} records of the inbox",
        *(f"  report written again: {path}" for path in outcome.reports),
        "Beyond reach, to be looked after by you:",
        *(f"  {place}" for place in outcome.elsewhere),
    )


def _row(row: Mapping[str, Any]) -> str:
    values = {name: value for name, _, value in row["columns"]}
    if row["table"] == "attribution":
        return f"{values['side']} {values['rank']}: {values['example_id']}, score {values['score']:.6g}"
    return f"{row['table']}: {values.get('prediction', '')}"


def _reach(reach: Reach) -> list[str]:
    lines = [
        f"{len(reach.examples):,} examples in {len(reach.dataset_version_ids)} dataset versions; "
        f"models trained on these: {_listed(reach.model_version_ids) or 'none'}.",
        f"They are among the strongest examples of {len(reach.output_ids):,} outputs, and named or measured in "
        f"{len(reach.audit_ids):,} audits.",
    ]
    if reach.largest_share is not None:
        lines.append(f"Their largest share of the support over one audit is {reach.largest_share:.1%}.")
    return [*lines, "Weaker influence than the strongest that each audit kept is not seen here."]


def _reaudit(reach: Reach) -> list[str]:
    return [f"gradtrail reaudit {name}" for name in reach.model_version_ids] if reach.output_ids else []


def _reaudit_lines(reach: Reach) -> list[str]:
    if not (commands := _reaudit(reach)):
        return []
    return ["To see what it changes for outputs that were audited before:", *(f"  {each}" for each in commands)]


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    rest = len(found) - _MOST_SHOWN
    return ", ".join(found[:_MOST_SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")
