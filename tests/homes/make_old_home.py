"""Makes f0bbf55.tar.xz and f0bbf55.json: a home as commit f0bbf55 leaves it, and what that commit says about it.

Run with that commit's gradtrail: PYTHONPATH=/path/to/f0bbf55 python tests/homes/make_old_home.py
"""

from __future__ import annotations

import json
import lzma
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from project import MODEL, PLACE, OldProject  # noqa: E402 - the folder of tests is no package

from gradtrail.flows.audit import audit  # noqa: E402
from gradtrail.flows.calibrate import calibrate  # noqa: E402
from gradtrail.flows.index import index  # noqa: E402
from gradtrail.flows.ingest import ingest  # noqa: E402
from gradtrail.flows.reaudit import reaudit  # noqa: E402
from gradtrail.lineage import queries  # noqa: E402
from gradtrail.lineage.erasure_plan import ErasureRequest  # noqa: E402
from gradtrail.lineage.signatures import new_keys  # noqa: E402
from gradtrail.lineage.sql import run_sql  # noqa: E402
from gradtrail.lineage.withdrawals import WithdrawalRequest  # noqa: E402
from gradtrail.tasks.audit_options import AuditOptions  # noqa: E402
from gradtrail.tasks.calibration_plans import CalibrateOptions  # noqa: E402
from gradtrail.tasks.erasing import erase_data  # noqa: E402
from gradtrail.tasks.index_options import IndexOptions  # noqa: E402
from gradtrail.tasks.registering import TrainedWeights, register_model  # noqa: E402
from gradtrail.tasks.verifying import verify_workspace  # noqa: E402
from gradtrail.tasks.withdrawing import withdraw_data  # noqa: E402

METHODS_ASKED_AGAIN = ("grad_cos", "tracin_cp", "ekfac")
ID_COLUMNS = (
    ("dataset_version", "dataset_version_id"),
    ("model_version", "model_version_id"),
    ("checkpoint", "checkpoint_id"),
    ("gradient_index", "index_id"),
    ("weighting", "weighting_id"),
    ("fidelity", "fidelity_id"),
    ("output", "output_id"),
    ("audit", "audit_id"),
    ("withdrawal", "withdrawal_id"),
    ("erasure", "erasure_id"),
)


def make(project: OldProject) -> None:
    """Register, ingest, index twice, calibrate, audit, withdraw, audit, erase."""
    workspace = project.settings.workspace()
    project.write_adapter()
    new_keys(project.folder / "key.pem")
    register_model(
        workspace.registry(),
        project.weights(20),
        adapter=project.adapter(),
        training_data=None,
        name="old",
        checkpoints=[TrainedWeights(step, 0.1, project.weights(step).state_dict()) for step in (10, 20)],
        aliases=["champion"],
        parameters={},
        run_id="",
    )
    ingest(workspace, MODEL)
    index(workspace, MODEL, IndexOptions(group_dimension=4), every_checkpoint=True)
    project.drop("a.jsonl", 1, 2, 3)
    audit(workspace, MODEL)
    counted = CalibrateOptions(sets=8, seeds=2, steps=(2, 6), learning_rate=0.1, batch_size=16, aspects=("source",))
    calibrate(workspace, MODEL, counted)
    project.drop("b.jsonl", 4, 5)
    audit(workspace, MODEL)
    withdraw_data(workspace, WithdrawalRequest("source", "left"), "the owner asked")
    project.drop("c.jsonl", 6)
    audit(workspace, MODEL)
    index(workspace, MODEL, IndexOptions(group_dimension=4, projection="eigen"))
    person = ErasureRequest(person="Jane Secret 3", personal_names=frozenset({"author"}))
    erase_data(workspace, person, "asked to")
    erase_data(workspace, ErasureRequest(output_ids=("inbox:out-2",)), "asked to")


def ids(project: OldProject) -> dict[str, list[Any]]:
    """Every id in the ledger, by table."""
    snapshot = project.settings.workspace().snapshot
    return {
        table: run_sql(snapshot, f"SELECT DISTINCT {column} AS id FROM {table} ORDER BY 1")["id"].to_pylist()  # noqa: S608
        for table, column in ID_COLUMNS
    }


def next_audits(project: OldProject) -> dict[str, Any]:
    """What an audit of new outputs is called and says, and audits of the old ones by other methods."""
    workspace = project.settings.workspace()
    project.drop("d.jsonl", 7, 8)
    made = {"auto": audit(workspace, MODEL).audit_id}
    for method in METHODS_ASKED_AGAIN:
        made[method] = reaudit(workspace, MODEL, AuditOptions(method)).audit_id
    told = {}
    with workspace.ledger().read() as connection:
        for name, audit_id in made.items():
            details = queries.audit_details(connection, audit_id)
            told[name] = {
                "audit_id": audit_id,
                "attributions": [[a.output_id, a.example_id, a.side, a.rank, a.score] for a in details.attributions],
                "shares": [[s.output_id, s.side, s.attribute, s.value, s.share] for s in details.shares],
                "findings": [[f.rule, f.severity, f.output_id] for f in details.findings],
            }
    return told


def main() -> None:
    """Make the home, pack it, and write down what an audit of it says next."""
    from prefect.testing.utilities import prefect_test_harness

    if PLACE.exists():
        sys.exit(f"{PLACE} is there already; remove it first.")
    PLACE.mkdir()
    project = OldProject(PLACE)
    with prefect_test_harness():
        make(project)
        found = verify_workspace(project.settings.workspace())
        if found.problems:
            sys.exit(f"The new home does not verify: {found.problems}")
        shutil.rmtree(PLACE / "__pycache__", ignore_errors=True)
        shutil.copytree(PLACE, packed := PLACE.with_name(f"{PLACE.name}-packed"))
        with (
            lzma.open(HERE / "f0bbf55.tar.xz", "wb", preset=9 | lzma.PRESET_EXTREME) as stream,
            tarfile.open(fileobj=stream, mode="w") as archive,
        ):
            archive.add(packed, arcname=".")
        shutil.rmtree(packed)
        said = {"ids": ids(project), "notes": list(found.notes), "checked": found.checked, "next": next_audits(project)}
    (HERE / "f0bbf55.json").write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
