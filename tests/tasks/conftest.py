"""A workspace whose ledger knows one model version, written as nouns: no training, no server."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gradtrail.digests import sha256_json
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.nouns import (
    Attribution,
    Audit,
    Checkpoint,
    Coverage,
    DatasetVersion,
    Index,
    ManifestRow,
    ModelVersion,
    OutputResult,
    Run,
    Weighting,
)
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.tasks.core.workspace import Workspace

CHECKPOINT = "c" * 64
DATASET = "d" * 64


@dataclass(frozen=True)
class Known:
    """A workspace in which `digits/1` is ingested and indexed."""

    workspace: Workspace

    @property
    def ledger(self) -> Ledger:
        return self.workspace.ledger()

    def with_sources(self, *sources: SourceConfig) -> Known:
        return Known(replace(self.workspace, sources=sources))

    def ingest(self, version: int) -> None:
        """Record one more version of the model."""
        _record_version(self.ledger, version)

    def sql(self, query: str) -> list[tuple]:
        with self.ledger.read() as connection:
            return connection.execute(query).fetchall()

    def report(self, *output_ids: str) -> str:
        """Record an audit of these outputs and its report in MLflow, as a flow would; returns the audit's id."""
        index = Index(CHECKPOINT, DATASET, {}, Coverage(1, 1, (), 1, 1), "gradients", 1, "e" * 64)
        self.ledger.record_index(index)
        self.ledger.record_weighting(Weighting())
        audit = Audit(
            outputs=tuple((output_id, "emitted") for output_id in output_ids),
            model_version_id="digits/1",
            index_ids=(index.index_id,),
            method="influence",
            parameters={},
            weighting_id=Weighting().weighting_id,
            policy_sha256="f" * 64,
        )
        self.ledger.record_audit(
            audit,
            method_notes={},
            results=[OutputResult(output_id, "7", 0.5, True, 1.0, 0.0) for output_id in output_ids],
            attributions=[Attribution(output_id, "train-0", "proponent", 1, 1.0) for output_id in output_ids],
            shares=[],
            influences=[],
            findings=[],
        )
        digests = {"html_uri": "file:///report.html", "html_sha256": "a" * 64, "file_sha256": {}}
        self.ledger.record_report(audit.audit_id, **digests, mlflow_run_id="audit-run", mlflow_experiment_id="7")
        return audit.audit_id


def _record_version(ledger: Ledger, version: int) -> None:
    run = Run(f"run-{version}", "0", "training", datetime(2026, 1, 1, tzinfo=UTC))
    checkpoint_id = CHECKPOINT if version == 1 else sha256_json(version)
    checkpoint = Checkpoint(checkpoint_id, 10, 0.1, "safetensors", "a", "a", checkpoint_id, 1)
    named = ModelVersion("digits", version, run.run_id, DATASET, "module:Adapter", "b" * 64, (checkpoint_id,))
    ledger.record_model_version(named, run, [checkpoint])


@pytest.fixture
def known(tmp_path: Path, migrated_mlflow: Path) -> Known:
    """A workspace whose ledger has `digits/1`, with an MLflow database of its own."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copyfile(migrated_mlflow, home / "mlflow.db")
    workspace = Workspace(
        home=str(home),
        tracking_uri=f"sqlite:///{home / 'mlflow.db'}",
        artifact_root=str(home / "artifacts"),
        gradients_uri=str(home / "gradients"),
        mlflow_url="http://mlflow.example",
    )
    manifest = [ManifestRow("train-0", "a" * 64, {"source": "left"})]
    workspace.ledger().record_dataset_version(DatasetVersion(DATASET, "digits", 1, "manifest"), manifest)
    _record_version(workspace.ledger(), 1)
    return Known(workspace)
