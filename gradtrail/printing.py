"""What commands print: readable tables on a terminal, one JSON document with `--json`."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from gradtrail.digests import short
from gradtrail.errors import AttributionWarning

if TYPE_CHECKING:
    import pyarrow

    from gradtrail.attribution.methods import Method
    from gradtrail.doctor import Examination
    from gradtrail.errors import GradtrailError
    from gradtrail.flows.audit import AuditOutcome
    from gradtrail.flows.ingest import IngestOutcome
    from gradtrail.flows.watch import WatchOutcome
    from gradtrail.lineage.records import Explanation, LineageNode
    from gradtrail.storage.registry import RegisteredVersion
    from gradtrail.tasks.indexing import IndexOutcome
    from gradtrail.tasks.reporting import FoundReport
    from gradtrail.tasks.self_influences import SelfInfluenceTable

_UNWATCHED_WIDTH = 240
_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "fault": "[red]fault[/]"}


def console() -> Console:
    """A console on standard output as it is now; wide where nobody watches, so that digests stay whole."""
    on_terminal = sys.stdout.isatty()
    return Console(highlight=False, width=None if on_terminal else _UNWATCHED_WIDTH)


def say_or_json(value: Any, text: str, *, as_json: bool) -> None:
    """One result: a sentence for people, or JSON for scripts."""
    _json(value) if as_json else _say(text)


def say(*lines: str) -> None:
    """Lines of text as they are, wrapped by the terminal alone."""
    _say(*lines)


def print_json(value: Any) -> None:
    """One JSON document."""
    _json(value)


def show_error(error: GradtrailError) -> None:
    """What happened and what to do, on standard error."""
    target = Console(stderr=True, highlight=False)
    target.print(f"[bold red]Error:[/] {escape(error.what)}", soft_wrap=True)
    if error.remedy:
        target.print(f"[bold]Remedy:[/] {escape(error.remedy)}", soft_wrap=True)


def calm_warnings() -> None:
    """From now on an AttributionWarning is one line on standard error; other warnings look as Python prints them."""
    plain = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, AttributionWarning):
            return plain(message, category, filename, lineno, file, line)
        note = f"[bold yellow]Note:[/] {escape(str(message))}"
        return Console(stderr=True, highlight=False).print(note, soft_wrap=True)

    warnings.showwarning = show


def show_registered(version: RegisteredVersion, alias: str, *, as_json: bool) -> None:
    """A newly registered model version."""
    if as_json:
        return _json({"model_version_id": version.model_version_id, "run_id": version.run_id, "alias": alias})
    named = f" with alias {alias}" if alias else ""
    return _say(f"Registered {version.model_version_id}{named}.", f"Next: gradtrail ingest {version.model_version_id}")


def show_ingest(outcome: IngestOutcome, *, as_json: bool) -> None:
    """What ingest recorded."""
    if as_json:
        return _json(outcome)
    if not outcome.new:
        return _say(f"Nothing new: {outcome.model_version_id} is in the ledger already.")
    return _say(
        f"Ingested {outcome.model_version_id}: {len(outcome.checkpoint_ids)} checkpoints, "
        f"{outcome.example_count:,} examples in dataset version {short(outcome.dataset_version_id)}.",
        f"Next: gradtrail index {outcome.model_version_id}",
    )


def show_index(outcomes: Sequence[IndexOutcome], *, as_json: bool) -> None:
    """What an index pass measured."""
    if as_json:
        return _json(outcomes)
    for outcome in outcomes:
        if not outcome.new:
            _say(f"Nothing new: index {short(outcome.index_id)} is complete.")
            continue
        resumed = f", {outcome.rows_resumed:,} were there from an earlier pass" if outcome.rows_resumed else ""
        refused = f", {outcome.quarantined:,} quarantined" if outcome.quarantined else ""
        _say(f"Index {short(outcome.index_id)}: {outcome.rows_written:,} gradients measured{resumed}{refused}.")
        if not outcome.complete:
            _say("This was one shard: run the others, then gradtrail index without --shard, which completes the index.")
        for warning in outcome.warnings:
            _say(f"Warning: {warning}")
    return None


def show_audit(outcome: AuditOutcome, *, as_json: bool) -> None:
    """What an audit run did."""
    if as_json:
        return _json(outcome)
    for record_id, cause in outcome.refused:
        _say(f"Refused output {record_id}: {cause}")
    for audit_id in outcome.finished:
        _say(f"Completed the report of the interrupted audit {short(audit_id)}.")
    if outcome.left_out:
        _say(f"{outcome.left_out:,} pending outputs were left out: refused when measured, or without a label.")
    if not outcome.audit_id:
        return _say(f"Nothing new: every output of {outcome.model_version_id} in the inbox has been audited.")
    return _say(
        f"Audited {outcome.output_count:,} outputs of {outcome.model_version_id} (audit {short(outcome.audit_id)}).",
        *(f"Note: {warning}" for warning in outcome.warnings),
        f"Report: {outcome.report}",
    )


def show_added(placed: Path, *, as_json: bool) -> None:
    """Where a file of outputs went."""
    if as_json:
        return _json({"file": str(placed)})
    return _say(f"In the inbox: {placed}", "The next audit takes what is new in it.")


def show_report(found: FoundReport, *, as_json: bool) -> None:
    """Where a report is."""
    if as_json:
        return _json(found)
    written = " (written again from the ledger)" if found.rewritten else ""
    links = [f"In MLflow: {found.mlflow_url}"] if found.mlflow_url else []
    return _say(f"Report of audit {short(found.audit_id)}{written}: {found.html}", *links)


def show_explanation(explanation: Explanation, *, as_json: bool) -> None:
    """One output: the chain, and who supports and opposes it."""
    if as_json:
        return _json(explanation)
    out = console()
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
    if explanation.result is not None:
        facts["emitted"] = explanation.result.prediction
        facts["reproduced"] = "yes" if explanation.result.reproduced else "no"
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


def show_lineage(nodes: Sequence[LineageNode], *, as_json: bool) -> None:
    """A closure as a tree: the start at the root, every node under the one it was reached from."""
    if as_json:
        return _json(nodes)
    if not nodes:
        return _say("Nothing.")
    children: dict[str, list[LineageNode]] = {}
    for node in nodes[1:]:
        children.setdefault(f"{node.parent_kind}:{node.parent}", []).append(node)
    tree = Tree(_node_text(nodes[0]))
    open_branches = [(tree, nodes[0])]
    while open_branches:
        branch, node = open_branches.pop()
        for child in children.get(f"{node.kind}:{node.node_id}", ()):
            open_branches.append((branch.add(_node_text(child)), child))
    console().print(tree, soft_wrap=True)
    return None


def show_table(table: pyarrow.Table, *, as_json: bool) -> None:
    """Rows of a query."""
    rows = table.to_pylist()
    if as_json:
        return _json(rows)
    out = console()
    shown = Table(*map(escape, table.column_names), box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*(escape(_plain(value)) for value in row.values()))
    out.print(shown)
    out.print(f"[dim]{len(rows):,} rows[/]")
    return None


def show_methods(methods: Sequence[Method], *, as_json: bool) -> None:
    """The registry of attribution methods."""
    if as_json:
        return _json([_method(method) for method in methods])
    out = console()
    for method in methods:
        values = _method(method)
        out.print(f"[bold]{values['name']}[/] {escape(values['description'])}", soft_wrap=True)
        details = f"needs {values['needs']}; cost: {values['cost']}; {values['source']}"
        out.print(f"    [dim]{escape(details)}[/]", soft_wrap=True)
    return None


def show_watch(outcome: WatchOutcome, *, as_json: bool) -> None:
    """What a look at the registry brought."""
    if as_json:
        return _json(outcome)
    lines = [f"Ready: {name}." for name in outcome.prepared]
    lines += [f"Failed: {name}. {cause}" for name, cause in outcome.failed]
    return _say(*(lines or ["Nothing new: every watched version is ready."]))


def show_self_influence(found: SelfInfluenceTable, *, as_json: bool) -> None:
    """The training examples that influence themselves most, and where the whole table is."""
    if as_json:
        return _json(found)
    table = Table("rank", "example", "self-influence", "attributes", box=None, pad_edge=False)
    for rank, (example_id, value) in enumerate(found.top, start=1):
        attributes = ", ".join(f"{name} {text}" for name, text in found.attributes.get(example_id, {}).items())
        table.add_row(str(rank), escape(example_id), f"{value:.4g}", escape(attributes))
    console().print(table)
    return _say(f"All {found.example_count:,} examples: {found.path}")


def show_doctor(examinations: Sequence[Examination], *, as_json: bool) -> None:
    """What the doctor found."""
    if as_json:
        return _json(examinations)
    table = Table("", "what", "found", box=None, pad_edge=False, show_header=False)
    for examination in examinations:
        table.add_row(_MARKS[examination.status], escape(examination.what), escape(examination.found))
    console().print(table)
    return None


def _method(method: Method) -> dict[str, str]:
    return {
        "name": method.name,
        "description": method.description,
        "needs": method.needs_in_words,
        "cost": method.cost,
        "source": method.source,
    }


def _node_text(node: LineageNode) -> str:
    relation = f" [dim]· {escape(node.relation.replace('_', ' '))}[/]" if node.relation else ""
    known_by_label = node.label in (node.node_id, node.node_id.partition("@")[0])
    name = escape(node.label) + ("" if known_by_label else f" [dim]{escape(node.node_id)}[/]")
    return f"[bold]{escape(node.kind.replace('_', ' '))}[/] {name}{relation}"


def _say(*lines: str) -> None:
    for line in lines:
        console().print(escape(line), soft_wrap=True)


def _json(value: Any) -> None:
    sys.stdout.write(json.dumps(_as_json(value), ensure_ascii=False, indent=2) + "\n")


def _as_json(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_as_json(item) for item in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else value


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return "" if value is None else str(value)
