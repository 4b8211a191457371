"""What an audit takes from calibrations: method, parameters, weighting and index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gradtrail.attribution.methods.needs import DIAGONAL
from gradtrail.attribution.methods.registry import find_method
from gradtrail.attribution.methods.spec import UNIFORM, MethodSpec
from gradtrail.errors import NotFoundError, UsageError
from gradtrail.lineage.read import queries
from gradtrail.nouns import Fidelity, Weighting
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.core.extensions import load_method
from gradtrail.tasks.core.ledger_nouns import recorded_model_version
from gradtrail.tasks.core.weightings import NOT_LEARNED, found_weighting
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.opened import method_indexes


@dataclass(frozen=True)
class ResolvedAudit:
    """An audit with method and weighting chosen, and the indexes it scores, the serving checkpoint's last."""

    options: AuditOptions
    index_ids: tuple[str, ...]


def resolve_audit(workspace: Workspace, model_version_id: str, options: AuditOptions) -> ResolvedAudit:
    """Take from the latest calibration what the options leave to it.

    A method that is left to it is the best after the longest training, or for the question that is asked; with a
    weighting that was learned for a method, that method; with a number for a horizon, method `horizon`; without any
    calibration the default method. A method that is named keeps its own parameters, unless a question is asked. The
    index is the one that was calibrated last for the method, so that building another one moves no audit.

    Raises:
        UsageError: when options tune what the calibration chooses.
        NotFoundError: without an index, for a question that was never calibrated, or an unknown weighting or index.
    """
    load_method(workspace, options.method)
    # Held meanwhile, so that all that is asked below opens the file once.
    with workspace.ledger().read():
        return _resolved(workspace, model_version_id, options)


def _resolved(workspace: Workspace, model_version_id: str, options: AuditOptions) -> ResolvedAudit:
    request = _Request(workspace, model_version_id, options)
    if options.method is None and options.horizon is not None and options.question is None:
        return request.with_own_parameters("horizon")
    if options.method is not None and options.question is None:
        return request.with_own_parameters(options.method)
    if options.question is None and options.weighting not in NOT_LEARNED:
        learned = found_weighting(workspace, model_version_id, options.weighting)
        if "method" in learned.evidence:
            said = learned.evidence
            return request.tuned(said["method"], said["parameters"], learned.weighting_id, said["index_ids"])
    chosen = request.best()
    if chosen is not None:
        return request.tuned(chosen.method, chosen.parameters, chosen.weighting_id, chosen.evidence["index_ids"])
    if options.question is not None:
        raise request.never_calibrated()
    return request.with_own_parameters(find_method(None).name)


class _Request:
    """An audit as it was asked for, and what calibrations of its serving checkpoint measured, the latest first."""

    def __init__(self, workspace: Workspace, model_version_id: str, options: AuditOptions) -> None:
        self._workspace = workspace
        self._model_version_id = model_version_id
        self._options = options
        with workspace.ledger().read() as connection:
            serving = recorded_model_version(connection, model_version_id).checkpoint_ids[-1]
            self._measured = [
                found
                for found in queries.fidelities(connection, serving)
                if found.metric == "fidelity_subset" and found.evidence["target"] == options.target
            ]

    def best(self) -> Fidelity | None:
        """The latest best that answers the request, on indexes that are still the ones its method would score."""
        return next(self._answers(), None)

    def with_own_parameters(self, method: str) -> ResolvedAudit:
        """A method with the parameters it was asked for, on the index that was calibrated for it."""
        asked = self._options
        weighting = found_weighting(self._workspace, self._model_version_id, asked.weighting)
        options = replace(asked, method=method, weighting=_named(weighting))
        indexes = self._indexes(method, self._calibrated_index(method), asked.every_checkpoint)
        return ResolvedAudit(options, tuple(indexes))

    def tuned(
        self, method: str, parameters: Mapping[str, Any], weighting_id: str, index_ids: list[str]
    ) -> ResolvedAudit:
        """A method with calibrated parameters and weighting."""
        asked = self._options
        self._refuse_tuning(method)
        if asked.weighting == UNIFORM:
            weighting_id = UNIFORM
        elif asked.weighting not in NOT_LEARNED:
            weighting_id = found_weighting(self._workspace, self._model_version_id, asked.weighting).weighting_id
        elif weighting_id == Weighting().weighting_id:
            weighting_id = UNIFORM
        spec = MethodSpec.from_json({**parameters, "method": method, "weighting": weighting_id})
        options = asked.with_method(spec)
        return ResolvedAudit(options, tuple(self._indexes(method, index_ids[-1], len(index_ids) > 1)))

    def never_calibrated(self) -> NotFoundError:
        """The refusal of a question."""
        asked, name = self._options, self._model_version_id
        whose = f" for method {asked.method}" if asked.method else ""
        options = f" --method {asked.method}" if asked.method else ""
        options += "" if asked.target == "emitted" else f" --target {asked.target}"
        options += f" --index {asked.index}" if asked.index else ""
        return NotFoundError(
            f"The horizon {asked.question} of {name} was never calibrated{whose}, or could not be measured: that takes "
            "at least two amounts of further training, whose noise ceiling stands off zero.",
            f"Measure them: gradtrail calibrate {name}{options} --steps 10,50,200.",
        )

    def _answers(self) -> Iterator[Fidelity]:
        asked = self._options
        scope = "uniform" if asked.weighting == UNIFORM else "all"
        if asked.method is not None:
            scope = "uniform method" if asked.weighting == UNIFORM else "method"
        for found in self._measured:
            said = found.evidence
            if asked.method not in (None, found.method) or found.not_measured_because:
                continue
            if asked.question:
                fits = said.get("horizon") == asked.question and scope in said["best_of"]
            else:
                best_of = said.get("best_of", ())
                fits = said.get("chosen", False) if scope == "all" else said["longest"] and scope in best_of
            indexes = list(said["index_ids"])
            if fits and self._indexes(found.method, indexes[-1], len(indexes) > 1) == indexes:
                yield found

    def _indexes(self, method: str, preferred: str, every_checkpoint: bool = False) -> list[str]:
        only = self._options.index
        return method_indexes(self._workspace, self._model_version_id, method, every_checkpoint, only, preferred)

    def _calibrated_index(self, method: str) -> str:
        """The index that was calibrated last for this method, else for the one that was chosen."""
        own = [found for found in self._measured if found.method == method]
        if not own and DIAGONAL not in find_method(method).needs:
            own = [found for found in self._measured if found.evidence.get("chosen")]
        return str(own[0].evidence["index_ids"][-1]) if own else ""

    def _refuse_tuning(self, method: str) -> None:
        asked = self._options
        left = MethodSpec().parameters
        given = [name for name, value in asked.parameters.items() if value != left.get(name)]
        given += ["every_checkpoint"] * asked.every_checkpoint
        if given:
            whose = "Method auto" if asked.method is None else f"The horizon {asked.question}"
            raise UsageError(
                f"{whose} takes {method} from the calibration of {self._model_version_id}, with its own parameters; "
                f"{', '.join(given)} cannot be given beside it.",
                f"Leave that out, or name the method alone: --method {method}.",
            )


def _named(weighting: Weighting) -> str:
    return weighting.weighting_id if weighting.group_weights else UNIFORM
