"""The ledger: every noun recorded once, under its id, with an event that proves it.

One process writes at a time. Each writer opens the file, runs one transaction and closes it again, so that readers
and other writers wait milliseconds. Recording the same thing again is harmless: it returns False and adds nothing.
Recording something else under the same id is refused, because nothing in the ledger is ever changed or deleted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from gradtrail.errors import DataError, LedgerError, NotFoundError
from gradtrail.lineage import catalogue, nouns_to_rows
from gradtrail.lineage.append import append, is_recorded, keep_new, require_same, unrecorded
from gradtrail.lineage.connections import WRITING, first_line, first_row, marked, open_database, open_snapshot
from gradtrail.lineage.gate import gate_of
from gradtrail.lineage.migrations import migrate, newest_version, version_of
from gradtrail.lineage.rows import Rows, rows_of
from gradtrail.lineage.seal import copy_and_seal
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

DEFAULT_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class LedgerPaths:
    """Where the ledger and its published snapshot live."""

    database: Path
    snapshot: Path


class Ledger:
    """The one owner of the ledger file.

    Args:
        database: the DuckDB file; created by the first write.
        snapshot: the read-only copy for everyone else; created by `publish_snapshot`.
        patience_seconds: how long a call waits for another process or thread that holds the file.

    Every method raises LedgerError when the file stays locked, is damaged, or was written by a newer gradtrail. Every
    writer raises DataError, and records nothing, when a value is missing, non-finite, of the wrong type or twice there,
    or when the id is recorded already with other content.
    """

    def __init__(self, database: Path, snapshot: Path, *, patience_seconds: float = DEFAULT_PATIENCE_SECONDS) -> None:
        self.paths = LedgerPaths(database, snapshot)
        self.patience_seconds = patience_seconds
        self._gate = gate_of(database)

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
        header, members, run_row, weights = nouns_to_rows.model_version_rows(model_version, run, checkpoints)
        model_version_id = model_version.model_version_id
        with self.transaction() as connection:
            self.require(connection, "dataset_version", "dataset_version_id", [model_version.dataset_version_id])
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
        rows = nouns_to_rows.index_rows(index)
        with self.transaction() as connection:
            self.require(connection, "checkpoint", "checkpoint_id", [index.checkpoint_id])
            self.require(connection, "dataset_version", "dataset_version_id", [index.dataset_version_id])
            return self._record(connection, "index", index.index_id, rows)

    def record_weighting(self, weighting: Weighting) -> bool:
        """Record a weighting. The evidence of the first record stays."""
        rows = nouns_to_rows.weighting_rows(weighting)
        with self.transaction() as connection:
            return self._record(connection, "weighting", weighting.weighting_id, rows)

    def record_fidelities(self, fidelities: Sequence[Fidelity]) -> bool:
        """Record measurements in one event; other figures for the same method are another measurement.

        Raises:
            LedgerError: a checkpoint or weighting is not recorded.
        """
        rows = nouns_to_rows.fidelity_rows(fidelities)
        checkpoints = sorted({fidelity.checkpoint_id for fidelity in fidelities})
        with self.transaction() as connection:
            self.require(connection, "checkpoint", "checkpoint_id", checkpoints)
            self.require(connection, "weighting", "weighting_id", sorted({each.weighting_id for each in fidelities}))
            return self._record(connection, "fidelity", ", ".join(checkpoints), rows)

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
            self.require(connection, "model_version", "model_version_id", model_versions)
            new = keep_new(connection, rows)
            if new.count:
                append(connection, "outputs", ", ".join(model_versions), [new])
            new_ids = set(new.data.column("output_id").to_pylist())
            return [output.output_id for output in outputs if output.output_id in new_ids]

    def record_quarantine(self, source: str, record_id: str, cause: str) -> bool:
        """Record that a record was refused, and why. The same record may be refused for several causes."""
        rows = nouns_to_rows.quarantine_rows(source, record_id, cause)
        with self.transaction() as connection:
            return self._record(connection, "quarantine", source, rows)

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
        rows = nouns_to_rows.audit_rows(
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
            self._require_audited(connection, audit, example_ids)
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
        record = (audit_id, html_uri, html_sha256, file_sha256, mlflow_run_id, mlflow_experiment_id)
        rows = rows_of("report", [record])
        with self.transaction() as connection:
            self.require(connection, "audit", "audit_id", [audit_id])
            return self._record(connection, "report", audit_id, rows)

    def publish_snapshot(self) -> Path:
        """Publish a copy for readers, by rename, with its seal beside it; returns the path of the snapshot."""
        self.paths.snapshot.parent.mkdir(parents=True, exist_ok=True)
        with self._gate.exclusive(self.patience_seconds):
            with self._open_for_writing():
                pass  # closing folds what a killed writer left in the log into the file
            copy_and_seal(self.paths.database, self.paths.snapshot, patience_seconds=self.patience_seconds)
        return self.paths.snapshot

    def interrupted_writers(self) -> list[Path]:
        """Marks of writers that were killed since the last publication; those at work hold the file's lock as well."""
        return sorted(self.paths.database.parent.glob(f"{self.paths.database.name}{WRITING}*"))

    @contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection on the ledger itself; close it soon, for writers wait for it.

        Raises:
            NotFoundError: nothing was recorded yet.
        """
        with self.read_unmigrated() as connection:
            current = version_of(connection) == newest_version()
            if current:
                yield connection
        if not current:
            with self.transaction():
                pass  # opening for writing migrates
            with self.read_unmigrated() as connection:
                yield connection

    def read_snapshot(self) -> duckdb.DuckDBPyConnection:
        """A read-only connection on the published snapshot; the caller closes it.

        One that an older gradtrail published is published anew first.

        Raises:
            NotFoundError: nothing was published yet.
        """
        connection = open_snapshot(self.paths.snapshot)
        try:
            current = version_of(connection) == newest_version()
        except LedgerError:
            connection.close()
            raise
        if current:
            return connection
        connection.close()
        self.publish_snapshot()
        return open_snapshot(self.paths.snapshot)

    @contextmanager
    def read_unmigrated(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """As `read`, but whatever schema version the file has; changes nothing."""
        if not self.paths.database.is_file():
            raise NotFoundError(
                f"There is no ledger at {self.paths.database}.", "Run `gradtrail ingest` first: it records a model."
            )
        database, patience = self.paths.database, self.patience_seconds
        with (
            self._gate.shared(patience),
            open_database(database, read_only=True, patience_seconds=patience) as connection,
        ):
            yield connection

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep this process's other threads away from the file, to hash it."""
        with self._gate.exclusive(self.patience_seconds):
            yield

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that writes, in one transaction: all of it is kept at the end, or nothing."""
        self.paths.database.parent.mkdir(parents=True, exist_ok=True)
        with self._gate.exclusive(self.patience_seconds), self._open_for_writing() as connection:
            yield connection

    @contextmanager
    def _open_for_writing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        database, patience = self.paths.database, self.patience_seconds
        with (
            marked(database) as mark,
            open_database(database, read_only=False, patience_seconds=patience) as connection,
        ):
            mark.touch()
            try:
                connection.begin()
                try:
                    migrate(connection)
                    yield connection
                except BaseException:
                    connection.rollback()
                    raise
                connection.commit()
            except duckdb.Error as error:
                raise LedgerError(
                    f"Writing to the ledger {database} failed and recorded nothing: {first_line(error)}.",
                    "Check the disk, run `gradtrail verify`, then try again.",
                ) from error

    def _record(self, connection: duckdb.DuckDBPyConnection, kind: str, subject: str, rows: Rows) -> bool:
        new = keep_new(connection, rows)
        if new.count:
            append(connection, kind, subject, [new])
        return bool(new.count)

    def require(self, connection: duckdb.DuckDBPyConnection, table: str, column: str, values: Sequence[str]) -> None:
        """Refuse to go on where a row that is referred to is missing.

        Raises:
            LedgerError: names the first value that no row has.
        """
        if missing := unrecorded(connection, table, column, values):
            raise LedgerError(
                f"{table.replace('_', ' ')} {missing[0]} is not in the ledger.",
                "Record it first; `gradtrail ingest` and `gradtrail index` do so.",
            )

    def _require_audited(self, connection: duckdb.DuckDBPyConnection, audit: Audit, example_ids: set[str]) -> None:
        self.require(connection, "model_version", "model_version_id", [audit.model_version_id])
        self.require(connection, "weighting", "weighting_id", [audit.weighting_id])
        self.require(connection, "gradient_index", "index_id", audit.index_ids)
        self.require(connection, "output", "output_id", [output_id for output_id, _ in audit.outputs])
        found = connection.execute(
            "SELECT DISTINCT dataset_version_id FROM gradient_index WHERE index_id IN (SELECT unnest(?))",
            [list(audit.index_ids)],
        ).fetchall()
        if len(found) != 1:
            raise DataError(
                f"Audit {audit.audit_id} scores against indexes over {len(found)} dataset versions.",
                "Use at least one index, all over one dataset version.",
            )
        query = """
            SELECT given FROM (SELECT unnest(?) AS given)
            ANTI JOIN (SELECT example_id FROM example WHERE dataset_version_id = ?) ON example_id = given
            ORDER BY given LIMIT 1"""
        stranger = first_row(connection, query, [sorted(example_ids), found[0][0]]) if example_ids else None
        if stranger:
            raise LedgerError(
                f"Example {stranger[0]} is not in dataset version {found[0][0]}, which the audit scored against.",
                "Rebuild the index from the recorded manifest.",
            )
