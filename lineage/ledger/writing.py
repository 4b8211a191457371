"""The ledger: every noun recorded once, under its id, with an event that proves it.

One process writes at a time. Each writer opens the file, runs one transaction and closes it again, so that readers
and other writers wait milliseconds. Recording the same thing again is harmless: it returns False and adds nothing.
Recording something else under the same id is refused, because nothing in the ledger is ever changed or deleted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import duckdb

from gradtrail.lineage.chain.appending import append, is_recorded, keep_new, require_same
from gradtrail.lineage.chain.references import require, require_audited
from gradtrail.lineage.chain.rows import Rows, rows_of
from gradtrail.lineage.ledger import nouns_to_rows
from gradtrail.lineage.ledger.audit_rows import audit_rows
from gradtrail.lineage.ledger.file import LedgerFile
from gradtrail.lineage.read import catalogue
from gradtrail.lineage.schema.home_paths import to_record
from gradtrail.nouns import (
    Attribution,
    Audit,
    Checkpoint,
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


class Ledger(LedgerFile):
    """The ledger as those see it who record: one method a noun.

    Every writer raises DataError, and records nothing, when a value is missing, non-finite, of the wrong type or twice
    there, or when the id is recorded already with other content. Paths below the home folder are recorded relative to
    it, and read back absolute.
    """

    def record_dataset_version(
        self, dataset: DatasetVersion, manifest: Iterable[ManifestRow], personal_names: Collection[str] = ()
    ) -> bool:
        """Record a dataset version with all its examples. Name and manifest URI of the first record stay.

        Attributes that `personal_names` lists go into the erasable table. A dataset version that is recorded already
        keeps its attributes where they were put then.
        """
        if self.paths.database.is_file():
            with self.read() as connection:
                if is_recorded(connection, "dataset_version", "dataset_version_id", dataset.dataset_version_id):
                    personal_names = catalogue.personal_names(connection, dataset.dataset_version_id)
        dataset = replace(dataset, manifest_uri=to_record(dataset.manifest_uri, self.home))
        header, examples, personal = nouns_to_rows.dataset_rows(dataset, manifest, personal_names)
        with self.transaction() as connection:
            if not keep_new(connection, header).count:
                require_same(connection, examples, "dataset_version_id", dataset.dataset_version_id)
                require_same(connection, personal, "dataset_version_id", dataset.dataset_version_id)
                return False
            append(connection, "dataset_version", dataset.dataset_version_id, [header, examples, personal])
            return True

    def record_model_version(self, model_version: ModelVersion, run: Run, checkpoints: Sequence[Checkpoint]) -> bool:
        """Record a model version with its run and its checkpoints, in order of steps.

        Run and checkpoints may be shared with other model versions.

        Raises:
            LedgerError: its dataset version is not recorded.
        """
        checkpoints = [replace(each, weights_uri=to_record(each.weights_uri, self.home)) for each in checkpoints]
        header, members, run_row, weights = nouns_to_rows.model_version_rows(model_version, run, checkpoints)
        model_version_id = model_version.model_version_id
        with self.transaction() as connection:
            require(connection, "dataset_version", "dataset_version_id", [model_version.dataset_version_id])
            new_run, new_weights = keep_new(connection, run_row), keep_new(connection, weights)
            if not keep_new(connection, header).count:
                require_same(connection, members, "model_version_id", model_version_id)
                return False
            append(connection, "model_version", model_version_id, [header, members, new_run, new_weights])
            return True

    def record_index(self, index: Index) -> bool:
        """Record a gradient index.

        Raises:
            LedgerError: its checkpoint or dataset version is not recorded.
        """
        rows = nouns_to_rows.index_rows(replace(index, table_uri=to_record(index.table_uri, self.home)))
        with self.transaction() as connection:
            require(connection, "checkpoint", "checkpoint_id", [index.checkpoint_id])
            require(connection, "dataset_version", "dataset_version_id", [index.dataset_version_id])
            return _record(connection, "index", index.index_id, rows)

    def record_weighting(self, weighting: Weighting) -> bool:
        """Record a weighting. The evidence of the first record stays."""
        rows = nouns_to_rows.weighting_rows(weighting)
        with self.transaction() as connection:
            return _record(connection, "weighting", weighting.weighting_id, rows)

    def record_fidelities(self, fidelities: Sequence[Fidelity]) -> bool:
        """Record measurements in one event; other figures for the same method are another measurement.

        Raises:
            LedgerError: a checkpoint or weighting is not recorded.
        """
        rows = nouns_to_rows.fidelity_rows(fidelities)
        checkpoints = sorted({fidelity.checkpoint_id for fidelity in fidelities})
        with self.transaction() as connection:
            require(connection, "checkpoint", "checkpoint_id", checkpoints)
            require(connection, "weighting", "weighting_id", sorted({each.weighting_id for each in fidelities}))
            return _record(connection, "fidelity", ", ".join(checkpoints), rows)

    def record_outputs(self, outputs: Sequence[Output]) -> list[str]:
        """Record outputs in one event; returns the ids that are new, in the order given.

        Raises:
            LedgerError: a model version is not recorded.
            DataError: an id is recorded already with another payload, time, model version or target.
        """
        if not outputs:
            return []
        rows = nouns_to_rows.output_rows(outputs)
        model_versions = sorted({output.model_version_id for output in outputs})
        with self.transaction() as connection:
            require(connection, "model_version", "model_version_id", model_versions)
            new = keep_new(connection, rows)
            if new.count:
                append(connection, "outputs", ", ".join(model_versions), [new])
            new_ids = set(new.data.column("output_id").to_pylist())
            return [output.output_id for output in outputs if output.output_id in new_ids]

    def record_quarantine(self, source: str, record_id: str, cause: str) -> bool:
        """Record that a record was refused, and why. The same record may be refused for several causes."""
        rows = nouns_to_rows.quarantine_rows(source, record_id, cause)
        with self.transaction() as connection:
            return _record(connection, "quarantine", source, rows)

    def record_audit(
        self,
        audit: Audit,
        *,
        method_notes: Mapping[str, Any],
        results: Sequence[OutputResult],
        attributions: Sequence[Attribution],
        shares: Sequence[Share],
        influences: Sequence[ExampleInfluence],
        findings: Sequence[Finding],
        group_contributions: Sequence[GroupContribution] = (),
    ) -> bool:
        """Record an audit with all its evidence, in one transaction.

        Numbers that were computed again may differ in their last digits (relative 1e-5); the first ones stay. An audit
        from before contributions of groups were recorded stays without them.

        Raises:
            LedgerError: a model version, weighting, index, output or example it names is not recorded.
            DataError: evidence that does not fit the audit; indexes over different dataset versions.
        """
        rows = audit_rows(
            audit,
            method_notes=method_notes,
            results=results,
            attributions=attributions,
            shares=shares,
            influences=influences,
            findings=findings,
            group_contributions=group_contributions,
        )
        with self.transaction() as connection:
            if is_recorded(connection, "audit", "audit_id", audit.audit_id):
                split = is_recorded(connection, "group_contribution", "audit_id", audit.audit_id)
                for each in rows:
                    if split or each.table.name != "group_contribution":
                        require_same(connection, each, "audit_id", audit.audit_id)
                return False
            example_ids = {each.example_id for each in attributions} | {each.example_id for each in influences}
            require_audited(connection, audit, example_ids)
            append(connection, "audit", audit.audit_id, rows)
            return True

    def record_report(
        self,
        audit_id: str,
        *,
        html_uri: str,
        html_sha256: str,
        file_sha256: Mapping[str, str],
        mlflow_run_id: str | None = None,
        mlflow_experiment_id: str | None = None,
    ) -> bool:
        """Record the report of an audit. `file_sha256` is the digest, by file name, of the files beside the HTML.

        Raises:
            LedgerError: the audit is not recorded.
        """
        html_uri = to_record(html_uri, self.home)
        record = (audit_id, html_uri, html_sha256, file_sha256, mlflow_run_id, mlflow_experiment_id)
        rows = rows_of("report", [record])
        with self.transaction() as connection:
            require(connection, "audit", "audit_id", [audit_id])
            return _record(connection, "report", audit_id, rows)


def _record(connection: duckdb.DuckDBPyConnection, kind: str, subject: str, rows: Rows) -> bool:
    new = keep_new(connection, rows)
    if new.count:
        append(connection, kind, subject, [new])
    return bool(new.count)
