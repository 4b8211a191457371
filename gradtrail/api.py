"""`gradtrail.connect()`: the whole job from a notebook or script, from a registered model to its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gradtrail.errors import UsageError
from gradtrail.reading import Reader

if TYPE_CHECKING:
    from gradtrail.flows.audit import AuditOutcome
    from gradtrail.flows.calibrate import CalibrateOutcome
    from gradtrail.flows.ingest import IngestOutcome
    from gradtrail.tasks.index.building import IndexOutcome

Options = TypeVar("Options")


class Connection(Reader):
    """A home folder: runs the flows as the command line does, with progress, and reads what they recorded.

    Reading takes the published snapshot: it is always whole, and never in the way of a running audit.
    """

    def ingest(self, reference: str, adapter: str = "") -> IngestOutcome:
        """Take a registered model version into the ledger: weights, dataset version, run and adapter.

        Args:
            reference: `NAME@alias`, `NAME/3`, or `NAME` for the newest.
            adapter: `module:Class` for versions that were registered by other means; naming it allows it to run.
        """
        from gradtrail.session import flow_session

        with flow_session(self._settings.home):
            from gradtrail.flows.ingest import ingest

            return ingest(self._workspace, reference, adapter)

    def index(self, reference: str, *, every_checkpoint: bool = False, **options: Any) -> list[IndexOutcome]:
        """Measure and store a projected gradient of every training example; resumes what was cut off.

        Args:
            reference: the model version, as in `ingest`.
            every_checkpoint: index all checkpoints, not only the one that serves.
            options: fields of `IndexOptions`, such as `group_dimension=256`.

        Raises:
            UsageError: for an option that does not exist; it names those that do.
        """
        from gradtrail.session import flow_session

        with flow_session(self._settings.home):
            from gradtrail.flows.index import index
            from gradtrail.tasks.index.options import IndexOptions

            return index(self._workspace, reference, _options(IndexOptions, options), every_checkpoint)

    def calibrate(self, reference: str, **options: Any) -> CalibrateOutcome:
        """Measure how well each method predicts further training of this checkpoint; audits then take the best.

        Args:
            reference: the model version, as in `ingest`.
            options: fields of `CalibrateOptions`, such as `budget_seconds=60.0`.

        Raises:
            UsageError: for an option that does not exist; it names those that do.
        """
        from gradtrail.session import flow_session
        from gradtrail.tasks.calibrate.plans import CalibrateOptions

        asked = _options(CalibrateOptions, options)
        with flow_session(self._settings.home):
            from gradtrail.flows.calibrate import calibrate

            return calibrate(self._workspace, reference, asked)

    def add_outputs(self, file: str | Path) -> Path:
        """Check every record of a file and put it into the inbox; returns where it lies there.

        Raises:
            DataError: a record cannot be used; nothing was added.
        """
        from gradtrail.storage.sources.outputs import add_file

        return add_file(Path(file), self._workspace.inbox)

    def audit(
        self,
        reference: str,
        *,
        retry_refused: bool = False,
        most_unjudged: float | None = None,
        least_outputs: int = 0,
        **options: Any,
    ) -> AuditOutcome:
        """Audit every output that no audit has covered yet, write the report, link it in MLflow.

        Args:
            reference: the model version, as in `ingest`.
            retry_refused: take outputs, too, that could not be measured before.
            most_unjudged: share of the outputs, 0 to 1, that may be left without an audit; None for any. What there
                was, and what was left out, is `given` of the result.
            least_outputs: how many outputs have to be audited at least, where `most_unjudged` is given.
            options: fields of `AuditOptions`, such as `method="grad_dot"`.

        Raises:
            UnjudgedError: too many outputs were left without an audit, or too few were audited.
            UsageError: for an option that does not exist; it names those that do.
        """
        from gradtrail.session import flow_session

        with flow_session(self._settings.home):
            from gradtrail.flows.audit import audit
            from gradtrail.tasks.audit.options import AuditOptions

            asked = _options(AuditOptions, options)
            return audit(
                self._workspace,
                reference,
                asked,
                retry_refused=retry_refused,
                most_unjudged=most_unjudged,
                least_outputs=least_outputs,
            )

    def report(self, audit_id: str = "") -> Path:
        """The HTML report of an audit, by the beginning of its id, or of the newest; written again if it is gone.

        Raises:
            NotFoundError: if there is no such audit.
        """
        from gradtrail.session import flow_session

        with flow_session(self._settings.home):
            from gradtrail.tasks.report.writing import ensure_report

            return Path(ensure_report(self._workspace, audit_id).html)


def connect(home: str | Path | None = None) -> Connection:
    """Open a home folder, to run flows on it and to read what they recorded.

    Args:
        home: default: the one of gradtrail.toml, `GRADTRAIL_HOME`, else `./.gradtrail`.

    Raises:
        LedgerError: when reading, if nothing was published there yet.
    """
    from gradtrail.settings import load_settings

    return Connection(load_settings(home=home))


def _options(kind: type[Options], given: Mapping[str, Any]) -> Options:
    known = [each.name for each in fields(kind)]  # type: ignore[arg-type]  # each is a dataclass
    if unknown := sorted(given.keys() - set(known)):
        raise UsageError(f"There is no option {unknown[0]!r}.", f"Known options: {', '.join(known)}.")
    return kind(**given)
