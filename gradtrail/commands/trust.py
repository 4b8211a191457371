"""Check what was recorded, prove it to others, take data back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradtrail import printing
from gradtrail.commands import trust_printing
from gradtrail.commands.options import AsJson, Home, load_settings
from gradtrail.errors import NotFoundError, UsageError, VerificationError
from gradtrail.session import flow_session

if TYPE_CHECKING:
    from gradtrail.lineage.erasure.plan import ErasureRequest
    from gradtrail.settings import Settings

app = typer.Typer()
keys_app = typer.Typer(help="Keys that sign audits.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

Reason = Annotated[str | None, typer.Option(help="Why; kept in the ledger, so name nobody.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and change nothing.")]
Examples = Annotated[list[str] | None, typer.Option("--example", help="Example id; repeatable.", show_default=False)]


@app.command()
def verify(
    output: Annotated[str, typer.Option(help="Output id: make a proof of what was recorded about it.")] = "",
    audit: Annotated[str, typer.Option(help="With --output: the audit; default: its newest.")] = "",
    proof: Annotated[Path | None, typer.Option(help="Check a proof; needs no ledger.", show_default=False)] = None,
    report: Annotated[
        Path | None, typer.Option(help="With --proof: report.html or report.json.", show_default=False)
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="PEM file: every audit must be signed by this key.", show_default=False)
    ] = None,
    seal: Annotated[
        list[Path] | None,
        typer.Option(help="Copy of a seal that was kept elsewhere; repeatable.", show_default=False),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Check that nothing was changed, dropped or added: ledger, checkpoints, manifests, indexes, payloads, reports."""
    if proof is not None or report is not None:
        if proof is None or report is None:
            raise UsageError("A proof is checked against its report.", "Give both --proof FILE and --report FILE.")
        return _check_proof(proof, report, as_json=as_json)
    settings = load_settings(home=home)
    if output:
        return _prove(settings, output, audit, as_json=as_json)
    with flow_session(settings.home):
        from gradtrail.tasks.govern.verifying import verify_workspace

        verification = verify_workspace(settings.workspace(), public_key, tuple(seal or ()))
    trust_printing.show_verification(verification, as_json=as_json)
    if verification.problems:
        raise typer.Exit(VerificationError.exit_code)
    return None


@app.command()
def withdraw(
    source: Annotated[str, typer.Option(help="Every example of this source.")] = "",
    example: Examples = None,
    attribute: Annotated[str, typer.Option(help="name=value: every example that carries it.")] = "",
    reason: Reason = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Take training data back: shows what it reached, then makes every later audit flag it."""
    from gradtrail.lineage.events.withdrawals import WithdrawalRequest
    from gradtrail.tasks.govern.withdrawing import reach_of_withdrawal, withdraw_data

    if bool(source) + bool(example) + bool(attribute) != 1:
        raise UsageError(
            "A withdrawal is about one thing.", "Give one of --source X, --attribute name=value, --example ID."
        )
    name, _, value = ("source", "", source) if source else attribute.partition("=")
    if not example and not (name and value):
        raise UsageError(f"{attribute!r} is not of the form name=value.", "For example: --attribute licence=GPL-3.0.")
    request = WithdrawalRequest(name, value, tuple(sorted(set(example or ()))))
    workspace = load_settings(home=home).workspace()
    asked = reach_of_withdrawal(workspace, request)
    if not dry_run:
        _confirm("Withdraw them?", lambda: trust_printing.show_reach(asked.reach), yes=yes, as_json=as_json)
        asked = withdraw_data(workspace, request, reason)
    trust_printing.show_withdrawal(asked, as_json=as_json)


@app.command()
def erase(
    example: Examples = None,
    output: Annotated[
        list[str] | None, typer.Option("--output", help="Output id; repeatable.", show_default=False)
    ] = None,
    person: Annotated[str, typer.Option(help="Value of a personal attribute, wherever it stands.")] = "",
    reason: Reason = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Erase personal attributes, payloads and previews for good; alone, finish what an interrupted run left."""
    settings = load_settings(home=home)
    workspace = settings.workspace()
    request = _erasure_request(settings, example, output, person)
    with flow_session(settings.home):
        from gradtrail.tasks.govern.erasing import erase_data, preview_erasure

        if request is not None:
            preview = preview_erasure(workspace, request)
            if dry_run:
                return trust_printing.show_erasure_preview(preview, as_json=as_json)
            if preview.erased:
                show = lambda: trust_printing.show_erasure_preview(preview, as_json=False)  # noqa: E731 - passed on
                _confirm("Erase it for good?", show, yes=yes, as_json=as_json)
        outcome = erase_data(workspace, request, reason)
    return trust_printing.show_erasure(outcome, as_json=as_json)


@app.command()
def retain(
    payloads: Annotated[str, typer.Option(help="How long payloads are kept, for example 90d.")] = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Delete payloads of outputs that were recorded longer ago; what was measured of them stays."""
    settings = load_settings(home=home)
    given = payloads.removesuffix("d")
    if payloads and not (given.isascii() and given.isdigit() and int(given)):
        raise UsageError(f"{payloads!r} is not a number of days.", "For example: --payloads 90d.")
    days = int(given) if payloads else settings.payload_retention_days
    if not days:
        raise UsageError("No time was given.", "Give --payloads 90d, or set payload_retention_days.")
    with flow_session(settings.home):
        from gradtrail.tasks.govern.erasing import retain_payloads

        outcome = retain_payloads(settings.workspace(), days)
    trust_printing.show_erasure(outcome, as_json=as_json)


@keys_app.command("new")
def keys_new(
    file: Annotated[Path, typer.Argument(help="File for the private key; the public one gets .pub added.")],
    as_json: AsJson = False,
) -> None:
    """Make an Ed25519 key pair; the private key is readable by its owner only."""
    from gradtrail.lineage.verify.signatures import new_keys

    private, public = new_keys(file)
    printing.say_or_json(
        {"private_key": str(private), "public_key": str(public)},
        f"Private key: {private} (keep it secret; set signing_key to it)\nPublic key: {public} (give it to auditors)",
        as_json=as_json,
    )


def _prove(settings: Settings, output: str, audit: str, *, as_json: bool) -> None:
    from gradtrail.lineage.chain.proofs import inclusion_proof
    from gradtrail.lineage.read import queries

    with settings.workspace().ledger().read() as connection:
        kind, output_id = queries.resolve(connection, output)
        if kind != "output":
            raise NotFoundError(f"{output_id} is a {kind.replace('_', ' ')}, not an output.", "Give an output's id.")
        audit_id = queries.resolve(connection, audit)[1] if audit else ""
        made = inclusion_proof(connection, output_id, audit_id)
    trust_printing.show_proof(made, as_json=as_json)


def _check_proof(proof: Path, report: Path, *, as_json: bool) -> None:
    from gradtrail.lineage.chain.proof_check import check_proof, report_evidence

    try:
        parsed = json.loads(proof.read_bytes())
    except OSError as error:
        raise NotFoundError(
            f"The proof {proof} cannot be read: {error.strerror}.", "Make it: gradtrail verify --output ID --json."
        ) from error
    except ValueError as error:
        raise VerificationError(f"The proof {proof} is not JSON: {error}.", "Have it made again.") from error
    trust_printing.show_proven(check_proof(parsed, report_evidence(report)), as_json=as_json)


def _erasure_request(
    settings: Settings, example: list[str] | None, output: list[str] | None, person: str
) -> ErasureRequest | None:
    from gradtrail.lineage.erasure.plan import ErasureRequest

    if not (example or output or person):
        return None
    return ErasureRequest(
        example_ids=tuple(example or ()),
        output_ids=tuple(output or ()),
        person=person,
        personal_names=frozenset(settings.personal_attributes),
    )


def _confirm(question: str, show: Callable[[], None], *, yes: bool, as_json: bool) -> None:
    if yes:
        return
    if as_json:
        raise UsageError("A script cannot be asked.", "Add --yes, or look first with --dry-run.")
    show()
    typer.confirm(question, abort=True)
