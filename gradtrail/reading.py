"""Reading everything that was audited, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradtrail.errors import NotFoundError, UsageError
from gradtrail.nouns import Share

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from gradtrail.lineage.read.answers import Explanation, LineageNode
    from gradtrail.lineage.read.comparisons import Comparison
    from gradtrail.lineage.read.graphs import LineageEdge
    from gradtrail.lineage.read.reach import BlastRadius
    from gradtrail.settings import Settings
    from gradtrail.tasks.audit.scores import AuditScores
    from gradtrail.tasks.core.workspace import Workspace

# One read of the scores; an output without any mass on a side has no shares there, as in an audit.
_INFLUENCE_BY = """
    WITH valued AS (
        SELECT example.example_id, coalesce(personal.value, example.attributes[$1], '') AS value
        FROM example
        LEFT JOIN personal_attribute AS personal ON personal.dataset_version_id = example.dataset_version_id
            AND personal.example_id = example.example_id AND personal.name = $1
        WHERE example.dataset_version_id = $2
    ), summed AS MATERIALIZED (
        SELECT
            output_id, value, count(*) AS examples,
            sum(greatest(score, 0)) AS proponent, sum(greatest(-score, 0)) AS opponent
        FROM score JOIN valued USING (example_id)
        GROUP BY output_id, value
    ), sided AS (
        SELECT output_id, value, examples, side, mass FROM summed UNPIVOT (mass FOR side IN (proponent, opponent))
    ), shared AS MATERIALIZED (
        SELECT
            output_id, side, value,
            mass / nullif(sum(mass) OVER output, 0) AS share,
            examples / sum(examples) OVER output AS training_share
        FROM sided WINDOW output AS (PARTITION BY output_id, side)
    ), averaged AS (
        SELECT
            side, value,
            sum(share) / (SELECT count(DISTINCT output_id) FROM shared AS other
                WHERE other.side = shared.side AND other.share IS NOT NULL) AS share,
            any_value(training_share) AS training_share
        FROM shared GROUP BY side, value
    )
    SELECT NULL AS output_id, side, value, share, training_share FROM averaged WHERE share IS NOT NULL
    UNION ALL
    SELECT output_id, side, value, share, training_share FROM shared WHERE share > 0
    ORDER BY output_id NULLS FIRST, side DESC, share DESC, value"""
_SCORING_SECONDS = 3600.0


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


class Reader:
    """Reads the published snapshot: always whole, never in the way of a running audit."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workspace: Workspace = settings.workspace()
        self._snapshot: Path = self._workspace.snapshot

    def sql(
        self,
        statement: str,
        *,
        parameters: Sequence[Any] = (),
        scores_of: str | None = None,
        timeout_seconds: float | None = None,
    ) -> SqlResult:
        """Run one SELECT over the ledger's tables and views; see docs/ledger.md.

        Args:
            statement: the statement.
            parameters: values for `?` or `$1` in it.
            scores_of: an audit, whose id may be cut short. Its scores stand beside the ledger then: the table `score`
                (output_id, example_id, score: every example with every output, computed from the stored gradients while
                the statement reads it) and the table `query` (output_id, target, loss, vector).
            timeout_seconds: when it is stopped; by default after 30 s, or an hour with scores.

        Raises:
            UsageError: if the statement cannot run, would write, or takes too long.
            NotFoundError: if there is no such audit.
            StoreError: if the stored gradients of the audit are gone.
        """
        from gradtrail.lineage.sql.answering import run_sql

        if scores_of is None:
            table = run_sql(self._snapshot, statement, parameters=parameters, timeout_seconds=timeout_seconds or 30)
            return SqlResult(table)
        return SqlResult(self._sql_over(self._scores(scores_of), statement, parameters, timeout_seconds))

    def influence_by(self, audit_id: str, attribute: str) -> list[Share]:
        """The shares of an audit by any attribute of the examples, also one that nobody named before it.

        Exact: every score is computed again from the stored gradients. As in an audit, a missing value counts as "";
        `output_id` None is the mean over the outputs. No permutation interval is measured.

        Raises:
            NotFoundError: if there is no such audit.
            StoreError: if its stored gradients are gone.
        """
        scores = self._scores(audit_id)
        found = self._sql_over(scores, _INFLUENCE_BY, [attribute, scores.dataset_version_id], None)
        return [
            Share(row["output_id"], row["side"], attribute, row["value"], row["share"], row["training_share"])
            for row in found.to_pylist()
        ]

    def blast_radius(self, attribute: str, *values: str, as_of: str | None = None) -> BlastRadius:
        """What the examples with these values touched: dataset and model versions, audits, outputs, reports.

        Args:
            attribute: for example `source`; `example_id` for the examples' own ids.
            values: at least one.
            as_of: an audit: as the ledger was when it was recorded.

        Raises:
            NotFoundError: if no example has such a value, or there is no such audit.
        """
        from gradtrail.lineage.read.reach import blast_radius

        with self._read() as connection:
            return blast_radius(connection, attribute, values, as_of=as_of)

    def compare(self, a: str, b: str) -> Comparison:
        """Two audits side by side: method, fidelity, outputs, shares, findings.

        Raises:
            NotFoundError: if there is no such audit.
        """
        from gradtrail.lineage.read.comparisons import compare_audits

        with self._read() as connection:
            return compare_audits(connection, a, b)

    def explain(self, output_id: str) -> Explanation:
        """Where an output came from: its proponents and opponents, shares, findings, dataset version, run, checkpoint.

        Raises:
            NotFoundError: for an unknown output; it names those that are close.
        """
        from gradtrail.lineage.read.explanations import explain

        with self._read() as connection:
            return explain(connection, output_id)

    def upstream(self, node_id: str, *, as_of: str | None = None) -> list[LineageNode]:
        """Everything that an output, audit, checkpoint, … came from; with `as_of`, as it was at that audit."""
        from gradtrail.lineage.read.closure import upstream

        with self._read() as connection:
            return upstream(connection, node_id, as_of=as_of)

    def downstream(self, node_id: str, *, as_of: str | None = None) -> list[LineageNode]:
        """Everything that came from an example, source, dataset version, …; with `as_of`, as it was at that audit."""
        from gradtrail.lineage.read.closure import downstream

        with self._read() as connection:
            return downstream(connection, node_id, as_of=as_of)

    def resolve(self, text: str, kind: str) -> str:
        """The full id of a thing of that kind, from its id or the beginning of it.

        Raises:
            NotFoundError: nothing has that id.
            UsageError: several things have it, or it is of another kind.
        """
        from gradtrail.lineage.read.closure import resolve

        with self._read() as connection:
            found, identifier = resolve(connection, text)
        if found != kind:
            raise UsageError(f"{identifier} is a {found.replace('_', ' ')}, not a {kind}.", f"Give the id of a {kind}.")
        return identifier

    def edges_among(self, nodes: Sequence[LineageNode]) -> list[LineageEdge]:
        """Every edge between nodes of a closure, for a picture of it."""
        from gradtrail.lineage.read.graphs import edges_among

        with self._read() as connection:
            return edges_among(connection, nodes)

    def _scores(self, audit_id: str) -> AuditScores:
        from gradtrail.lineage.read.closure import resolve
        from gradtrail.tasks.audit.scores import audit_scores

        with self._read() as connection:
            kind, resolved = resolve(connection, audit_id)
        if kind != "audit":
            raise NotFoundError(f"{resolved} is a {kind.replace('_', ' ')}, not an audit.", "Give the id of an audit.")
        return audit_scores(self._workspace, resolved)

    def _sql_over(
        self, scores: AuditScores, statement: str, parameters: Sequence[Any], timeout_seconds: float | None
    ) -> pyarrow.Table:
        from gradtrail.lineage.sql.answering import run_sql

        return run_sql(
            self._snapshot,
            statement,
            parameters=parameters,
            timeout_seconds=timeout_seconds or _SCORING_SECONDS,
            beside={"score": scores.scores, "query": scores.queries},
        )

    @contextmanager
    def _read(self) -> Iterator[Any]:
        from gradtrail.lineage.ledger.published import read_published

        def publish() -> None:
            self._workspace.ledger().publish_snapshot()

        with closing(read_published(self._snapshot, publish)) as connection:
            yield connection
