"""Verify: the ledger against its own history, and every file against the digest the ledger recorded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradtrail.digests import sha256_file, short
from gradtrail.errors import GradtrailError
from gradtrail.lineage.chain.proofs import audit_evidence
from gradtrail.lineage.erasure.erasures import erased_subjects
from gradtrail.lineage.read import listings
from gradtrail.lineage.read.measuring_adapters import audits_by_version, is_measured_by, possible_adapters
from gradtrail.lineage.read.pinned_files import kept_digests, recorded_before_pinning
from gradtrail.lineage.read.revisions import index_revisions
from gradtrail.lineage.verify.signatures import read_public_key, signature_of
from gradtrail.lineage.verify.verifying import Problem, verify_ledger
from gradtrail.nouns import Index
from gradtrail.reports.write import JSON_NAME
from gradtrail.tasks.core.kept_files import kept_name
from gradtrail.tasks.core.ledger_nouns import manifest_sha256, recorded_model_version
from gradtrail.tasks.core.progress import progress_bar
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.govern.copies import AWAY, extra_files, mlflow_copies
from gradtrail.tasks.index.eigenbases import basis_problem


@dataclass(frozen=True)
class Verification:
    """How many things of each kind were checked, and what was wrong, in order of checking.

    `notes` say what is no problem but must be known: what was erased, or measured again, by which event.
    """

    checked: dict[str, int]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()


def verify_workspace(workspace: Workspace, public_key: Path | None = None, seals: Sequence[Path] = ()) -> Verification:
    """Check ledger, manifests, checkpoints, indexes, payloads and reports. Reads everything, changes nothing.

    Args:
        workspace: what to check.
        public_key: PEM file; every audit must be signed by this key, and its report must say so.
        seals: copies of earlier seals that were kept elsewhere; the ledger must continue each.

    Raises:
        UsageError: the file holds no Ed25519 key, or no seal.
        NotFoundError: there is no ledger, or no such copy of a seal.
    """
    key = read_public_key(public_key) if public_key else ""
    ledger_report = verify_ledger(workspace.ledger(), key, seals)
    checked = dict(ledger_report.checked)
    problems = list(ledger_report.problems)
    notes = list(ledger_report.notes)
    if problems:
        return Verification(checked, tuple(problems), tuple(notes))
    checks: tuple[tuple[str, Callable[[Workspace], Iterator[Problem | None]]], ...] = (
        ("manifests", _manifests),
        ("checkpoints", _checkpoints),
        ("indexes", _indexes),
        ("kept files", _kept_files),
        ("payloads", _payloads),
        ("report files", _reports),
        ("printed roots", _printed_roots),
        ("extra files", extra_files),
        ("copies in MLflow", mlflow_copies),
    )
    with progress_bar("verifying", len(checks)) as bar:
        for name, check in checks:
            outcomes = list(check(workspace))
            checked[name] = len(outcomes)
            problems += [outcome for outcome in outcomes if outcome is not None and outcome.kind != AWAY]
            notes += [f"{each.subject}: {each.message}." for each in outcomes if each is not None and each.kind == AWAY]
            bar.advance(1)
    with workspace.ledger().read() as connection:
        erased = erased_subjects(connection, ["output", "payload"])
        remeasured = index_revisions(connection)
    notes += _unknown_adapters(workspace)
    notes += _unpinned(workspace)
    notes += [f"Index {short(each)} was measured again, by event {event}: {why}." for each, event, why in remeasured]
    by_event = Counter(erased.values())
    for event, count in sorted(by_event.items()):
        notes.append(f"{count:,} {'payload' if count == 1 else 'payloads'} erased by event {event}.")
    return Verification(checked, tuple(problems), tuple(notes))


def _manifests(workspace: Workspace) -> Iterator[Problem | None]:
    with workspace.ledger().read() as connection:
        datasets = [
            (dataset, manifest_sha256(connection, dataset.dataset_version_id))
            for dataset in listings.dataset_versions(connection)
        ]
    for dataset, sha256 in datasets:
        yield _file("manifest", dataset.dataset_version_id, Path(dataset.manifest_uri), sha256)


def _checkpoints(workspace: Workspace) -> Iterator[Problem | None]:
    with workspace.ledger().read() as connection:
        checkpoints = listings.checkpoints(connection)
    for checkpoint in checkpoints:
        yield _file("checkpoint", checkpoint.checkpoint_id, Path(checkpoint.weights_uri), checkpoint.weights_sha256)


def _indexes(workspace: Workspace) -> Iterator[Problem | None]:
    with workspace.ledger().read() as connection:
        indexes = listings.indexes(connection)
    store = workspace.gradients()
    for index in indexes:
        foreign = _scored_by_others(workspace, index)
        try:
            table = store.existing(index.index_id)
            seal = table.seal_record() if table is not None else None
            found = table.verify() if table is not None else ["its table is gone"]
            if seal is not None and (seal.version, seal.rows_sha256) != (index.table_version, index.rows_sha256):
                found.append("its seal is not the one that the ledger recorded")
        except GradtrailError as error:
            found = [str(error)]
        found += foreign
        if fault := basis_problem(workspace, index.feature_config):
            found.append(fault)
        yield Problem("index", index.index_id, "; ".join(found)) if found else None


def _kept_files(workspace: Workspace) -> Iterator[Problem | None]:
    """Kept files: pages of the report index, and what decides scores, which is made anew when it is gone."""
    with workspace.ledger().read() as connection:
        pinned = kept_digests(connection)
    for name, sha256 in pinned.items():
        path = workspace.root / name
        is_page = path.parent == workspace.reports
        yield _file("report" if is_page else "curvature", name, path, sha256) if is_page or path.is_file() else None


def _unpinned(workspace: Workspace) -> list[str]:
    """Kept files of curvature that the ledger holds no digest of."""
    with workspace.ledger().read() as connection:
        pinned = kept_digests(connection)
        older = {
            each.index_id for each in listings.indexes(connection) if recorded_before_pinning(connection, each.index_id)
        }
    notes = []
    for path in sorted(workspace.curvatures.glob("*")):
        name = kept_name(workspace, path)
        is_basis = path.name.startswith("basis-") and path.suffix == ".safetensors"  # its name is its digest
        if name in pinned or is_basis or path.name.startswith("."):
            continue
        is_used = path.name.startswith("basis-of-") or any(path.name.startswith(index_id) for index_id in older)
        notes.append(
            f"The file {name} is unpinned: "
            + (
                "it is from before the ledger held digests of such files. Delete it to have it made anew and pinned."
                if is_used and older
                else "nothing uses it."
            )
        )
    return notes


def _scored_by_others(workspace: Workspace, index: Index) -> list[str]:
    """What is wrong where audits of a version scored an index that another adapter than the version's measured."""
    with workspace.ledger().read() as connection:
        audits = audits_by_version(connection, index.index_id)
        versions = {name: recorded_model_version(connection, name) for name in audits}
        foreign = [name for name in audits if is_measured_by(connection, index, versions[name]) is False]
    return [
        f"another adapter measured its rows than the one of {name}, of which audit {short(audits[name][0])} scored them"
        + (f" and {len(audits[name]) - 1} more" if len(audits[name]) > 1 else "")
        for name in foreign
    ]


def _unknown_adapters(workspace: Workspace) -> list[str]:
    """What indexes from before adapters were part of their ids do not say."""
    notes = []
    with workspace.ledger().read() as connection:
        for index in listings.indexes(connection):
            if index.measured_by is None:
                count = len(possible_adapters(connection, index))
                told = (
                    "only one was registered with its weights then, and is taken for it"
                    if count == 1
                    else f"{count} were registered with its weights then, so that it is not known"
                )
                notes.append(f"Index {short(index.index_id)} does not say which adapter measured it: {told}.")
    return notes


def _payloads(workspace: Workspace) -> Iterator[Problem | None]:
    with workspace.ledger().read() as connection:
        outputs = listings.payloads_by_output(connection)
        erased = erased_subjects(connection, ["output", "payload"])
    kept = {sha256 for output_id, sha256 in outputs.items() if output_id not in erased}
    payloads = workspace.payloads()
    for output_id, payload_sha256 in outputs.items():
        if output_id in erased:
            is_back = payload_sha256 in payloads and payload_sha256 not in kept
            message = f"it was erased by event {erased[output_id]}, and is there again"
            yield Problem("payload", output_id, message) if is_back else None
            continue
        try:
            payloads.get(payload_sha256)
        except GradtrailError as error:
            yield Problem("payload", output_id, str(error))
        else:
            yield None


def _reports(workspace: Workspace) -> Iterator[Problem | None]:
    with workspace.ledger().read() as connection:
        reports = listings.reports(connection)
    for report in reports:
        folder = Path(report.html_uri).parent
        for name, sha256 in {Path(report.html_uri).name: report.html_sha256, **report.file_sha256}.items():
            yield _file("report", f"{short(report.audit_id)}/{name}", folder / name, sha256)


def _printed_roots(workspace: Workspace) -> Iterator[Problem | None]:
    """Each report against the ledger: root, event and signature that it prints."""
    with workspace.ledger().read() as connection:
        expected = [
            (report, audit_evidence(connection, report.audit_id), signature_of(connection, report.audit_id))
            for report in listings.reports(connection)
        ]
    for report, evidence, signature in expected:
        path = Path(report.html_uri).with_name(JSON_NAME)
        try:
            printed = json.loads(path.read_bytes()).get("evidence")
        except (OSError, ValueError):
            continue  # said already, among the report files
        if printed is None:
            continue  # written by a gradtrail that printed no root; its digest was checked
        wanted = {
            "audit_id": report.audit_id,
            "audit_root": evidence.audit_root,
            "event_hash": evidence.event_hash,
            "signature": signature.signature if signature else None,
        }
        found = {**printed, "signature": (printed.get("signature") or {}).get("signature")}
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        subject = f"{short(report.audit_id)}/{path.name}"
        message = f"its {', '.join(differing)} is not what the ledger recorded"
        yield Problem("report", subject, message) if differing else None


def _file(kind: str, subject: str, path: Path, expected_sha256: str) -> Problem | None:
    if not path.is_file():
        return Problem(kind, subject, f"the file {path} is gone")
    found = sha256_file(path)
    if found != expected_sha256:
        return Problem(kind, subject, f"the file {path} was changed: sha256 {found}, recorded {expected_sha256}")
    return None
