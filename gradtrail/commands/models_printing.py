"""What commands print about models, their indexes, and the methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from gradtrail import printing
from gradtrail.digests import short

if TYPE_CHECKING:
    from gradtrail.attribution.methods.rules import Method
    from gradtrail.flows.ingest import IngestOutcome
    from gradtrail.storage.models.registry import RegisteredVersion
    from gradtrail.tasks.audit.self_influences import SelfInfluenceTable
    from gradtrail.tasks.index.building import IndexOutcome


def show_registered(version: RegisteredVersion, alias: str, *, as_json: bool) -> None:
    """A newly registered model version."""
    if as_json:
        return printing.print_json(
            {"model_version_id": version.model_version_id, "run_id": version.run_id, "alias": alias}
        )
    named = f" with alias {alias}" if alias else ""
    return printing.say(
        f"Registered {version.model_version_id}{named}.", f"Next: gradtrail ingest {version.model_version_id}"
    )


def show_ingest(outcome: IngestOutcome, *, as_json: bool) -> None:
    """What ingest recorded."""
    if as_json:
        return printing.print_json(outcome)
    if not outcome.new:
        return printing.say(f"Nothing new: {outcome.model_version_id} is in the ledger already.")
    return printing.say(
        f"Ingested {outcome.model_version_id}: {len(outcome.checkpoint_ids)} checkpoints, "
        f"{outcome.example_count:,} examples in dataset version {short(outcome.dataset_version_id)}.",
        f"Next: gradtrail index {outcome.model_version_id}",
    )


def show_index(outcomes: Sequence[IndexOutcome], *, as_json: bool) -> None:
    """What an index pass measured."""
    if as_json:
        return printing.print_json(outcomes)
    for outcome in outcomes:
        if not outcome.new:
            printing.say(f"Nothing new: index {short(outcome.index_id)} is complete.")
            continue
        resumed = f", {outcome.rows_resumed:,} were there from an earlier pass" if outcome.rows_resumed else ""
        refused = f", {outcome.quarantined:,} quarantined" if outcome.quarantined else ""
        printing.say(f"Index {short(outcome.index_id)}: {outcome.rows_written:,} gradients measured{resumed}{refused}.")
        if outcome.remeasured:
            printing.say("The ledger had this index and its gradients were gone: they are there again, and it says so.")
        if not outcome.complete:
            printing.say(
                "This was one shard: run the others, then gradtrail index without --shard, which completes the index."
            )
        for warning in outcome.warnings:
            printing.say(f"Warning: {warning}")
    return None


def show_methods(methods: Sequence[Method], *, as_json: bool) -> None:
    """The registry of attribution methods."""
    if as_json:
        return printing.print_json([_method(method) for method in methods])
    out = printing.console()
    for method in methods:
        values = _method(method)
        out.print(f"[bold]{values['name']}[/] {escape(values['description'])}", soft_wrap=True)
        details = f"needs {values['needs']}; cost: {values['cost']}; {values['source']}"
        out.print(f"    [dim]{escape(details)}[/]", soft_wrap=True)
    return None


def show_self_influence(found: SelfInfluenceTable, *, as_json: bool) -> None:
    """The training examples that influence themselves most, and where the whole table is."""
    if as_json:
        return printing.print_json(found)
    table = Table("rank", "example", "self-influence", "attributes", box=None, pad_edge=False)
    for rank, (example_id, value) in enumerate(found.top, start=1):
        attributes = ", ".join(f"{name} {text}" for name, text in found.attributes.get(example_id, {}).items())
        table.add_row(str(rank), escape(example_id), f"{value:.4g}", escape(attributes))
    printing.console().print(table)
    return printing.say(f"All {found.example_count:,} examples: {found.path}")


def _method(method: Method) -> dict[str, str]:
    return {
        "name": method.name,
        "description": method.description,
        "needs": method.needs_in_words,
        "cost": method.cost,
        "source": method.source,
    }
