"""A small story, complete in the ledger: two dataset versions, one model, one index, five outputs, one audit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.nouns import (
    Attribution,
    Audit,
    Checkpoint,
    Coverage,
    DatasetVersion,
    ExampleInfluence,
    Fidelity,
    Finding,
    GroupContribution,
    Index,
    ManifestRow,
    ModelVersion,
    Output,
    OutputResult,
    Run,
    Share,
    Weighting,
)

START = datetime(2026, 11, 1, 12, 0, 0, 123456, tzinfo=UTC)


@dataclass(frozen=True)
class Story:
    """Nouns that fit together."""

    manifest: tuple[ManifestRow, ...]
    dataset: DatasetVersion
    run: Run
    checkpoints: tuple[Checkpoint, ...]
    model_version: ModelVersion
    index: Index
    weighting: Weighting
    fidelity: Fidelity
    outputs: tuple[Output, ...]
    audit: Audit
    evidence: dict[str, Any]

    def record(self, ledger: Ledger) -> None:
        """Everything up to the report, in order."""
        ledger.record_dataset_version(self.dataset, self.manifest)
        ledger.record_model_version(self.model_version, self.run, self.checkpoints)
        ledger.record_index(self.index)
        ledger.record_weighting(self.weighting)
        ledger.record_fidelities([self.fidelity])
        ledger.record_outputs(self.outputs)
        ledger.record_quarantine("inbox", "broken", "no label")
        ledger.record_audit(self.audit, **self.evidence)
        self.record_report(ledger)

    def record_report(self, ledger: Ledger) -> bool:
        return ledger.record_report(
            self.audit.audit_id,
            html_uri="file:///reports/report.html",
            html_sha256="ab" * 32,
            file_sha256={"report.json": "cd" * 32, "attribution.parquet": "ef" * 32},
            mlflow_run_id="run-of-audit",
            mlflow_experiment_id="0",
        )


def tell_story() -> Story:
    manifest = tuple(
        ManifestRow(
            f"train-{number:02d}",
            f"{number:064x}",
            {"source": ("archive", "forum")[number % 2], "licence": ("CC-BY", "MIT", "unknown")[number % 3]},
        )
        for number in range(12)
    )
    dataset = DatasetVersion("d1" * 32, "digits-train", len(manifest), "file:///manifest.parquet")
    run = Run("run-1", "0", "first training", START, {"epochs": "3"})
    checkpoints = tuple(
        Checkpoint(f"c{n}" * 32, 10 * n, 0.1 / n, "safetensors", f"mlflow:/{n}", f"file:///{n}", f"c{n}" * 32, 4096)
        for n in (1, 2)
    )
    model_version = ModelVersion(
        "digits", 1, "run-1", dataset.dataset_version_id, "demo:Adapter", "aa" * 32, ("c1" * 32, "c2" * 32)
    )
    index = Index(
        "c2" * 32,
        dataset.dataset_version_id,
        {"dimension": 64, "seed": 7, "groups": ["conv", "head"]},
        Coverage(90, 100, ("norm.weight",), 11, 12, {"train-11": "its loss is not finite"}),
        "lancedb://table",
        3,
        "dd" * 32,
    )
    weighting = Weighting()
    outputs = tuple(
        Output(
            f"inbox:{number}",
            "inbox",
            str(number),
            START + timedelta(minutes=number),
            model_version.model_version_id,
            f"{number + 100:064x}",
        )
        for number in range(5)
    )
    audited = outputs[:2]
    audit = Audit(
        tuple((output.output_id, output.target) for output in audited),
        model_version.model_version_id,
        (index.index_id,),
        "grad_cos",
        {"top_k": 3},
        weighting.weighting_id,
        "ff" * 32,
    )
    attributions = [
        Attribution(output.output_id, f"train-{3 * place + number:02d}", side, number + 1, sign * (3.5 - number))
        for output in audited
        for place, (side, sign) in enumerate((("proponent", 1), ("opponent", -1)))
        for number in range(3)
    ]
    shares = [
        Share(output_id, "proponent", "source", value, part, 0.5, low, high)
        for output_id, low, high in ((None, 0.4, 0.6), ("inbox:0", None, None), ("inbox:1", None, None))
        for value, part in (("forum", 0.75), ("archive", 0.25))
    ]
    evidence = {
        "method_notes": {"sign": "positive supports", "unit": "cosine"},
        "results": [OutputResult(output.output_id, "a seven", 0.25, True, 8.0, -4.0) for output in audited],
        "attributions": attributions,
        "shares": shares,
        "influences": [
            ExampleInfluence("train-00", "proponent", 1, 0.5),
            ExampleInfluence("train-03", "opponent", 1, 0.4),
        ],
        "findings": [
            Finding("share_of_licence", "high", "Half of it is of unknown licence.", None, {"share": 0.5}),
            Finding("dominating_example", "low", "One example dominates.", "inbox:1", {"example": "train-00"}),
        ],
        "group_contributions": [
            GroupContribution(output_id, side, group, share)
            for output_id, side, first in (
                (None, "proponent", 0.75),
                ("inbox:0", "proponent", 0.75),
                ("inbox:1", "opponent", 1.25),
            )
            for group, share in (("conv", first), ("head", 1 - first))
        ],
    }
    fidelity = Fidelity(
        "c2" * 32, "influence", weighting.weighting_id, "fidelity_subset", 0.83, 0.02, 0.95, 32,
        parameters={"curvature": "fisher", "relative_damping": 1.0},
        evidence={"steps": 200, "chosen": True, "longest": True, "target": "emitted", "index_ids": [index.index_id]},
    )  # fmt: skip
    return Story(
        manifest, dataset, run, checkpoints, model_version, index, weighting, fidelity, outputs, audit, evidence
    )


@pytest.fixture
def story() -> Story:
    return tell_story()


@pytest.fixture(scope="session")
def recorded_story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ledger of the story, published; copy it, never write it."""
    folder = tmp_path_factory.mktemp("story")
    ledger = Ledger(folder / "ledger.duckdb", folder / "snapshot.duckdb")
    tell_story().record(ledger)
    ledger.publish_snapshot()
    return folder


@pytest.fixture
def story_ledger(recorded_story: Path, tmp_path: Path) -> Ledger:
    """A ledger of one's own that holds the whole story and its published snapshot."""
    folder = tmp_path / "home"
    shutil.copytree(recorded_story, folder)
    return Ledger(folder / "ledger.duckdb", folder / "snapshot.duckdb", patience_seconds=20)


@pytest.fixture
def empty_ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "home" / "ledger.duckdb", tmp_path / "home" / "snapshot.duckdb", patience_seconds=20)


@pytest.fixture
def all_rows() -> Callable[[Ledger], dict[str, list[tuple[Any, ...]]]]:
    """Every row of every table, to see that nothing was added, changed or left half-written."""

    def read(ledger: Ledger) -> dict[str, list[tuple[Any, ...]]]:
        with ledger.read() as connection:
            names = [row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
            return {name: connection.execute(f"FROM {name} ORDER BY ALL").fetchall() for name in sorted(names)}

    return read


@pytest.fixture
def tamper() -> Callable[..., None]:
    """Change the ledger file behind gradtrail's back: triggers dropped, statements run, triggers put back."""

    def run(ledger: Ledger, *statements: str) -> None:
        with duckdb.connect(str(ledger.paths.database)) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            query = "SELECT trigger_name, table_name, sql FROM duckdb_triggers()"
            text = " ".join(statements)
            triggers = [row for row in connection.execute(query).fetchall() if row[1] in text]
            for name, table, _ in triggers:
                connection.execute(f"DROP TRIGGER {name} ON {table}")
            for each in statements:
                connection.execute(each)
            for *_, definition in triggers:
                connection.execute(definition)

    return run
