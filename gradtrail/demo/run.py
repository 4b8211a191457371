"""`gradtrail demo`: the main job end to end on real data, with everything embedded under one folder."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from gradtrail.digests import short
from gradtrail.secret_addresses import without_secrets
from gradtrail.session import flow_session
from gradtrail.settings import Settings, embedded_tracking_uri

if TYPE_CHECKING:
    from gradtrail.flows.audit import AuditOutcome
    from gradtrail.storage.models.registry import Registry
    from gradtrail.tasks.core.workspace import Workspace

MODEL = "digits"
ALIAS = "champion"
FEED = "demo"
INBOX_FILE = "held-out.parquet"
LATER_FILE = "later-outputs.parquet"
OUTPUT_COUNT = 60
CALIBRATION_HALVES, CALIBRATION_SEEDS = 24, 3
"""Counts instead of a budget: the demo shows the same figures on every machine."""
_PRODUCED_AT = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


def run_demo(
    settings: Settings, calibration_seeds: int = CALIBRATION_SEEDS, calibration_halves: int = CALIBRATION_HALVES
) -> None:
    """Train and register a small CNN, ingest, index and calibrate it, audit its outputs, and say what was found.

    Run again it finds nothing new, unless outputs were added to the inbox. It always works on MLflow, LanceDB and
    DuckDB inside the home folder, whatever other servers the settings name.
    """
    home = settings.home.resolve()
    policy = home / "policy.toml"
    if not policy.is_file():
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(__file__).with_name("policy.toml"), policy)
    embedded = settings.model_copy(
        update={"mlflow_tracking_uri": embedded_tracking_uri(home), "gradients_uri": "", "policy": policy}
    )
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    workspace = embedded.workspace()
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"[bold]gradtrail demo[/] in {escape(str(home))}\n"
        "Real images: scikit-learn's handwritten digits. The source names and licences are made up, and a few labels\n"
        "of one source were made wrong on purpose, to see whether the audit points to them.\n"
    )
    outcome = None
    with flow_session(home):
        if not _nothing_new(console, workspace):
            outcome = _audit(console, embedded, workspace, calibration_halves, calibration_seeds)
    if outcome and outcome.audit_id:
        _tell(console, workspace, outcome)
    else:
        console.print("\n[bold]Nothing new[/]: every output in the inbox has been audited, so there is no new report.")
    _next_steps(console, settings, workspace)


def _nothing_new(console: Console, workspace: Workspace) -> bool:
    """Whether an earlier run did everything; False at once where there was none."""
    if not (workspace.inbox / INBOX_FILE).is_file():
        return False
    with _step(console, "looking into registry, ledger and inbox for what is new"):
        from gradtrail.demo.first_look import nothing_new

        return nothing_new(workspace, f"{MODEL}@{ALIAS}")


def _audit(console: Console, settings: Settings, workspace: Workspace, halves: int, seeds: int) -> AuditOutcome:
    with _step(console, "starting MLflow, Prefect, LanceDB and DuckDB, embedded"):
        from gradtrail.flows.audit import audit
        from gradtrail.flows.calibrate import calibrate
        from gradtrail.flows.index import index
        from gradtrail.flows.ingest import ingest
        from gradtrail.tasks.calibrate.plans import CalibrateOptions

        registry = workspace.registry()
        registered = _is_registered(registry)
    if not registered:
        with _step(console, "training a small CNN and registering it in MLflow"):
            _train_and_register(settings)
    if not (workspace.inbox / INBOX_FILE).is_file():
        with _step(console, f"dropping {OUTPUT_COUNT} outputs of the model into the inbox, those it gets wrong first"):
            _drop_outputs(workspace)
    reference = f"{MODEL}@{ALIAS}"
    with _step(console, "flow ingest: weights, manifest and lineage into the ledger"):
        ingest(workspace, reference)
    with _step(console, "flow index: a projected gradient for every training example"):
        index(workspace, reference)
    if not _is_calibrated(workspace):
        with _step(console, "flow calibrate: which method predicts best what further training does"):
            options = CalibrateOptions(sets=halves, seeds=seeds, optimiser="sgd", learning_rate=0.02)
            calibrate(workspace, reference, options)
    with _step(console, "flow audit: exact scores, shares, findings, report"):
        return audit(workspace, reference)


def _is_registered(registry: Registry) -> bool:
    return any(model.name == MODEL for model in registry.client.search_registered_models())


def _is_calibrated(workspace: Workspace) -> bool:
    from gradtrail.lineage.read import queries

    with workspace.ledger().read() as connection:
        [version] = queries.model_versions(connection)
        return bool(queries.fidelities(connection, version.checkpoint_ids[-1]))


def _train_and_register(settings: Settings) -> None:
    from gradtrail.demo.digits import DigitsAdapter, train
    from gradtrail.registration import register
    from gradtrail.tasks.ingest.registering import TrainedWeights

    model, steps = train()
    register(
        model,
        adapter=DigitsAdapter(),
        name=MODEL,
        checkpoints=[TrainedWeights(step.step, step.learning_rate, step.state_dict) for step in steps],
        alias=ALIAS,
        parameters={"optimiser": "Adam", "learning_rate": str(steps[-1].learning_rate), "epochs": "12", "seed": "0"},
        settings=settings,
    )


def demo_records(workspace: Workspace) -> list[dict[str, Any]]:
    """What the model says about every held-out image, as records for the inbox, the wrong ones first."""
    import torch

    from gradtrail.demo.digits import DigitsAdapter, load_digits_data
    from gradtrail.storage.models.checkpoints import load_into, read_weights

    version = workspace.registry().resolve(f"{MODEL}@{ALIAS}")
    files = workspace.registry().fetch(version, workspace.root / "scratch" / "demo")
    model = DigitsAdapter().build_model()
    load_into(model, read_weights(max(files.glob("*.safetensors"))), name=MODEL)
    held_out = load_digits_data().held_out
    with torch.no_grad():
        predictions = model.eval()(torch.stack([example.inputs for example in held_out])).argmax(1).tolist()
    records = [
        {
            "source": FEED,
            "record_id": example.example_id,
            "model": MODEL,
            "version": version.version,
            "time": _PRODUCED_AT + timedelta(minutes=position),
            "inputs": example.inputs.tolist(),
            "prediction": prediction,
            "label": example.target,
        }
        for position, (example, prediction) in enumerate(zip(held_out, predictions, strict=True))
    ]
    return sorted(records, key=lambda record: record["prediction"] == record["label"])


def _drop_outputs(workspace: Workspace) -> None:
    from gradtrail.storage.sources.outputs import write_outputs

    records = demo_records(workspace)
    write_outputs(workspace.root / LATER_FILE, records[OUTPUT_COUNT : OUTPUT_COUNT + 10])
    write_outputs(workspace.inbox / INBOX_FILE, records[:OUTPUT_COUNT])


def _tell(console: Console, workspace: Workspace, outcome: AuditOutcome) -> None:
    from gradtrail.demo.digits import MISLABELLED_SOURCE, load_digits_data
    from gradtrail.lineage.read import queries
    from gradtrail.tasks.core.measured_fidelity import audited_fidelity, not_measured

    with workspace.ledger().read() as connection:
        details = queries.audit_details(connection, outcome.audit_id)
        audit = details.audit
        fidelity = audited_fidelity(
            connection,
            details.model_version.checkpoint_ids[-1],
            audit.method,
            audit.parameters,
            audit.weighting_id,
            audit.index_ids,
            "emitted",
        )
    planted = load_digits_data().mislabelled
    strongest = [
        influence.example_id
        for influence in sorted(details.influences, key=lambda influence: influence.rank)
        if influence.side == "opponent"
    ][: len(planted)]
    found = len(planted.intersection(strongest))
    sources = [
        share
        for share in details.shares
        if share.output_id is None and share.attribute == "source" and share.side == "proponent"
    ]
    console.print(f"\n[bold]Audit {short(outcome.audit_id)}[/] of {outcome.model_version_id}: ", end="")
    console.print(f"{outcome.output_count} outputs, {len(details.findings)} findings")
    if unmeasured := not_measured(fidelity):
        console.print(f"  {unmeasured}", soft_wrap=True)
    elif fidelity is not None:
        console.print(
            f"  fidelity of {fidelity.method}: {fidelity.value:.2f} ± {fidelity.standard_error:.2f} of at most "
            f"{fidelity.ceiling:.2f}, against {fidelity.evidence['steps']} steps of further training"
        )
    for share in sorted(sources, key=lambda share: -share.share):
        console.print(
            f"  {share.value:<18} carries {share.share:5.1%} of the support, {share.ratio:.2f}× its part of the data"
        )
    console.print(
        f"  {found} of the {len(planted)} wrong labels planted in {MISLABELLED_SOURCE} are among the {len(strongest)} "
        "examples that oppose the outputs most"
    )
    console.print(f"\nReport: [bold]{escape(outcome.report)}[/]")


def _next_steps(console: Console, settings: Settings, workspace: Workspace) -> None:
    from gradtrail.lineage.read import queries

    with workspace.ledger().read() as connection:
        latest = queries.latest_audit(connection)
        output_id = sorted(latest.outputs)[0][0] if latest else ""
    command = "gradtrail" if _on_path() else ".venv/bin/gradtrail"
    home = "" if settings.home == Path(".gradtrail") else f" --home {shlex.quote(str(settings.home))}"
    question = "SELECT side, source, share, ratio FROM source_share WHERE output_id IS NULL ORDER BY side, share DESC"
    console.print("\nTry next:")
    for line in (
        f"{command} explain {shlex.quote(output_id)}{home}",
        f'{command} sql "{question}"{home}',
        f"{command} verify{home}",
    ):
        console.print(f"  {escape(line)}")
    console.print("\nNew outputs make a new report that holds only those:")
    later, policy = (_relative(workspace.root / name) for name in (LATER_FILE, "policy.toml"))
    console.print(f"  {command} outputs add {later}{home}")
    console.print(f"  {command} audit {MODEL}@{ALIAS} --policy {policy}{home}")
    console.print("The same in MLflow:")
    console.print(f"  mlflow server --backend-store-uri {without_secrets(workspace.tracking_uri)}")


def _on_path() -> bool:
    return shutil.which("gradtrail") is not None


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@contextmanager
def _step(console: Console, description: str) -> Iterator[None]:
    started = time.perf_counter()
    with console.status(f"{description} …"):
        yield
    console.print(f"  [green]✓[/] {description} [dim]{time.perf_counter() - started:.1f} s[/]")
