"""`gradtrail.connect()`: a read-only handle on everything that was audited, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradtrail.lineage import queries
from gradtrail.lineage.graphs import LineageEdge, edges_among
from gradtrail.lineage.ledger import Ledger
from gradtrail.lineage.records import Explanation, LineageNode
from gradtrail.lineage.sql import run_sql
from gradtrail.settings import load_settings

if TYPE_CHECKING:
    import pandas
    import pyarrow


class SqlResult:
    """The rows of one query, as an Arrow table or a pandas frame."""

    def __init__(self, table: pyarrow.Table) -> None:
        self._table = table

    def arrow(self) -> pyarrow.Table:
        """As an Arrow table."""
        return self._table

    def pandas(self) -> pandas.DataFrame:
        """As a pandas frame."""
        frame: pandas.DataFrame = self._table.to_pandas()
        return frame

    def _repr_html_(self) -> str:
        return self.pandas().to_html(index=False)

    def __repr__(self) -> str:
        return self.pandas().to_string(index=False)


class Connection:
    """Reads the published snapshot: always whole, never in the way of a running audit."""

    def __init__(self, ledger: Ledger, snapshot: Path) -> None:
        self._ledger = ledger
        self._snapshot = snapshot

    def sql(self, statement: str) -> SqlResult:
        """Run one SELECT over the ledger's tables and views; see docs/ledger.md.

        Raises:
            UsageError: if the statement cannot run, would write, or takes too long.
        """
        return SqlResult(run_sql(self._snapshot, statement))

    def explain(self, output_id: str) -> Explanation:
        """Where an output came from: its proponents and opponents, shares, findings, dataset version, run, checkpoint.

        Raises:
            NotFoundError: for an unknown output; it names those that are close.
        """
        with self._read() as connection:
            return queries.explain(connection, output_id)

    def upstream(self, node_id: str) -> list[LineageNode]:
        """Everything that an output, audit, checkpoint, … came from."""
        with self._read() as connection:
            return queries.upstream(connection, node_id)

    def downstream(self, node_id: str) -> list[LineageNode]:
        """Everything that came from an example, source, dataset version, …"""
        with self._read() as connection:
            return queries.downstream(connection, node_id)

    def edges_among(self, nodes: Sequence[LineageNode]) -> list[LineageEdge]:
        """Every edge between nodes of a closure, for a picture of it."""
        with self._read() as connection:
            return edges_among(connection, nodes)

    @contextmanager
    def _read(self) -> Iterator[Any]:
        with closing(self._ledger.read_snapshot()) as connection:
            yield connection


def connect(home: str | Path | None = None) -> Connection:
    """Open a read-only handle on a gradtrail home folder.

    Args:
        home: default: the one of gradtrail.toml, `GRADTRAIL_HOME`, else `./.gradtrail`.

    Raises:
        LedgerError: on first use, if nothing was published there yet.
    """
    workspace = load_settings(home=home).workspace()
    return Connection(workspace.ledger(), workspace.snapshot)
