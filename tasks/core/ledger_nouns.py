"""Things of the ledger that must be there, with the remedy when they are not."""

from __future__ import annotations

from typing import TypeVar

import duckdb

from gradtrail.errors import LedgerError, NotReadyError
from gradtrail.lineage.read import queries
from gradtrail.lineage.read.revisions import current_digests
from gradtrail.nouns import DatasetVersion, Index, ModelVersion, Run, Weighting

_Noun = TypeVar("_Noun")


def recorded_model_version(connection: duckdb.DuckDBPyConnection, model_version_id: str) -> ModelVersion:
    """The model version.

    Raises:
        NotReadyError: if it was never ingested.
    """
    found = queries.model_version(connection, model_version_id)
    if found is None:
        raise NotReadyError(
            f"The model version {model_version_id} is not in the ledger.",
            f"Take it in first: gradtrail ingest {model_version_id}.",
        )
    return found


def recorded_dataset(connection: duckdb.DuckDBPyConnection, dataset_version_id: str) -> DatasetVersion:
    """The dataset version that another row names."""
    return _named(queries.dataset_version(connection, dataset_version_id), "dataset version", dataset_version_id)


def manifest_sha256(connection: duckdb.DuckDBPyConnection, dataset_version_id: str) -> str:
    """The digest that the kept manifest has: the dataset version's id, until something of it was erased."""
    revised = current_digests(connection, "manifest", dataset_version_id)
    return next(iter(revised.values())) if revised else dataset_version_id


def recorded_index(connection: duckdb.DuckDBPyConnection, index_id: str) -> Index:
    """The index that another row names."""
    return _named(queries.index(connection, index_id), "index", index_id)


def recorded_run(connection: duckdb.DuckDBPyConnection, run_id: str) -> Run:
    """The run that another row names."""
    return _named(queries.run(connection, run_id), "run", run_id)


def recorded_weighting(connection: duckdb.DuckDBPyConnection, weighting_id: str) -> Weighting:
    """The weighting that another row names."""
    return _named(queries.weighting(connection, weighting_id), "weighting", weighting_id)


def _named(found: _Noun | None, kind: str, identifier: str) -> _Noun:
    if found is None:
        raise LedgerError(f"The {kind} {identifier} is missing from the ledger.", "Run gradtrail verify.")
    return found
