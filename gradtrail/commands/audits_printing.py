"""What commands print about audits, their reports, and single outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from gradtrail import printing
from gradtrail.digests import short
from gradtrail.durations import in_words
from gradtrail.reports.formats import plural

if TYPE_CHECKING:
    from gradtrail.flows.audit import AuditOutcome, OtherVersion
    from gradtrail.lineage.read.answers import Explanation
    from gradtrail.tasks.collect.collecting import WaitingOutputs
    from gradtrail.tasks.report.writing import FoundReport


_ANSWERS = {True: "yes", False: "no", None: "not applicable"}


def show_audit(outcome: AuditOutcome, *, as_json: bool) -> None:
    """What an audit run did."""
    if as_json:
        return printing.print_json(outcome)
    for record_id, cause in outcome.refused:
        printing.say(f"Refused output {record_id}: {cause}")
    for audit_id in outcome.finished:
        printing.say(f"Completed the report of the interrupted audit {short(audit_id)}.")
    if outcome.left_out:
        number = plural(outcome.left_out, "pending output was", "pending outputs were")
        printing.say(f"{number} not audited: refused when measured, or without a label.")
    if outcome.sampled_out:
        number = plural(outcome.sampled_out, "new output was", "new outputs were")
        printing.say(f"{number} sampled out by their source.")
    if outcome.clock_behind_seconds:
        behind = in_words(outcome.clock_behind_seconds)
        printing.say(
            f"This machine's clock is {behind} behind the newest event of the ledger: one of the two is wrong."
        )
    for waiting in outcome.waits:
        printing.say(*_waiting(waiting))
    for audit_id in outcome.earlier:
        printing.say(f"Audit {short(audit_id)} covers an earlier portion of the outputs.")
    for other in outcome.others:
        printing.say(_other_version(other))
    if not outcome.audit_id:
        return printing.say(_nothing_audited(outcome))
    number = plural(outcome.output_count, "output")
    return printing.say(
        f"Audited {number} of {outcome.model_version_id} (audit {short(outcome.audit_id)}).",
        *(f"Note: {warning}" for warning in outcome.warnings),
        f"Report: {outcome.report}",
    )


def _waiting(waiting: WaitingOutputs) -> list[str]:
    """How many outputs of a version wait for a later run, one sentence a cause."""
    name, lines = waiting.model_version_id, []
    if waiting.ahead and waiting.earliest is not None:
        number = plural(waiting.ahead, f"output of {name} waits", f"outputs of {name} wait")
        lines.append(
            f"{number} for the time that it says, {waiting.earliest:%Y-%m-%d %H:%M:%S} UTC or later: it lies in the "
            "future. See whether this machine's clock is right, and that of the one that wrote it."
        )
    if left := waiting.count - waiting.ahead:
        number = plural(left, f"output of {name} waits", f"outputs of {name} wait")
        cause = (
            "this run has recorded as many as its source may bring at once (most_per_run)"
            if waiting.ingested
            else f"that version is not ingested. Next: gradtrail ingest {name}"
        )
        lines.append(f"{number} for a later run: {cause}.")
    return lines


def _nothing_audited(outcome: AuditOutcome) -> str:
    """Why a run made no audit of the version that was asked for."""
    name = outcome.model_version_id
    if outcome.left_out or outcome.refused or outcome.sampled_out:
        return f"No output of {name} was audited. {outcome.given.in_words()}"
    if outcome.refused_before:
        number = plural(outcome.refused_before, f"output of {name} has", f"outputs of {name} have")
        return (
            f"Nothing new. {number} no audit: refused when measured by an earlier run. "
            "Once the cause is gone: --retry-refused."
        )
    if any(each.model_version_id == name for each in outcome.waits):
        return f"Nothing was audited: outputs of {name} wait."
    return f"Nothing new: every output of {name} in the inbox has been audited."


def _other_version(other: OtherVersion) -> str:
    if other.refusal:
        return f"Outputs of {other.model_version_id} are left: {other.refusal}"
    audits = ", ".join(short(audit_id) for audit_id in other.audit_ids) or "none"
    return f"Audited {other.output_count:,} outputs of {other.model_version_id} too (audits: {audits})."


def show_report(found: FoundReport, *, as_json: bool) -> None:
    """Where a report is."""
    if as_json:
        return printing.print_json(found)
    written = " (written again from the ledger)" if found.rewritten else ""
    links = [f"In MLflow: {found.mlflow_url}"] if found.mlflow_url else []
    return printing.say(f"Report of audit {short(found.audit_id)}{written}: {found.html}", *links)


def show_explanation(explanation: Explanation, *, as_json: bool) -> None:
    """One output: the chain, and who supports and opposes it."""
    if as_json:
        return printing.print_json(explanation)
    out = printing.console()
    output, checkpoint = explanation.output, explanation.checkpoint
    out.print(f"[bold]{escape(output.output_id)}[/]  {output.produced_at:%Y-%m-%d %H:%M} UTC")
    facts = {
        "model version": explanation.model_version.model_version_id,
        "training run": f"{explanation.run.name} ({explanation.run.run_id})",
        "checkpoint": f"{checkpoint.checkpoint_id} (step {checkpoint.step})",
        "dataset version": explanation.dataset_version.dataset_version_id,
    }
    if explanation.audit is not None:
        facts["audit"] = f"{explanation.audit.audit_id} by {explanation.audit.method}"
        versions = ", ".join(" ".join(each) for each in (explanation.measured_with or {}).items())
        facts["measured with"] = versions or "not recorded: the index is older than such records"
    if explanation.result is not None:
        facts["emitted"] = explanation.result.prediction
        facts["reproduced"] = _ANSWERS[explanation.result.reproduced]
    for name, value in facts.items():
        out.print(f"  {name:<16} {escape(value)}", soft_wrap=True)
    if explanation.audit is None:
        out.print("Not audited yet. Next: gradtrail audit " + escape(explanation.model_version.model_version_id))
        return None
    for title, ranked in (("Proponents", explanation.proponents), ("Opponents", explanation.opponents)):
        names = sorted({name for entry in ranked for name in entry.attributes})
        table = Table("", "example", "score", *names, title=title, title_justify="left", box=None, pad_edge=False)
        for entry in ranked:
            found, values = entry.attribution, [escape(entry.attributes.get(name, "")) for name in names]
            table.add_row(str(found.rank), escape(found.example_id), f"{found.score:.4g}", *values)
        out.print(table if ranked else f"{title}: none")
    for finding in explanation.findings:
        scope = "" if finding.output_id else " (whole audit)"
        out.print(f"[bold]{finding.severity}[/]{scope} {escape(finding.message)}", soft_wrap=True)
    return None
