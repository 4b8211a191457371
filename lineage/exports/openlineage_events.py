"""What the ledger recorded, as OpenLineage run events (https://openlineage.io/spec/2-0-2/OpenLineage.json).

Each ingest, index, calibration and audit is one run: a START and a COMPLETE event. The ledger records work when it is
done, so both carry the time of recording. The run id follows from the hash of the ledger's event, so that sending the
same history again gives the same runs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import attr
import duckdb
from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    RunFacet,
    documentation_job,
    execution_parameters_run,
    job_type_job,
    processing_engine_run,
    set_producer,
)

from gradtrail import __version__
from gradtrail.lineage.chain.proofs import audit_evidence
from gradtrail.lineage.connections import recorded
from gradtrail.lineage.exports import openlineage_datasets as datasets
from gradtrail.lineage.exports.openlineage_datasets import Described
from gradtrail.lineage.read import queries
from gradtrail.lineage.read.measuring_adapters import own_fidelities
from gradtrail.nouns import Fidelity, ModelVersion

Connection = duckdb.DuckDBPyConnection
PRODUCER = f"https://github.com/gradtrail/gradtrail/tree/v{__version__}"
FACET_SCHEMA = (
    "https://raw.githubusercontent.com/gradtrail/gradtrail/main/lineage/facets/GradtrailAttributionRunFacet.json"
)
DEFAULT_NAMESPACE = "gradtrail"
SHARED = ("source", "licence")


@attr.define
class GradtrailAttributionRunFacet(RunFacet):
    """The facet of an audit's run; its schema is `lineage/facets/GradtrailAttributionRunFacet.json`."""

    auditId: str  # noqa: N815 - the published schema names the fields
    modelVersion: str  # noqa: N815
    method: str
    methodParameters: dict[str, str]  # noqa: N815
    signAndUnit: str  # noqa: N815
    outputs: int
    auditRoot: str  # noqa: N815
    eventHash: str  # noqa: N815
    eventSequence: int  # noqa: N815
    fidelity: list[dict[str, Any]]
    shares: list[dict[str, Any]]
    findings: dict[str, int]
    reportUri: str | None = None  # noqa: N815
    reportSha256: str | None = None  # noqa: N815

    @staticmethod
    def _get_schema() -> str:
        return f"{FACET_SCHEMA}#/$defs/GradtrailAttributionRunFacet"


@dataclass(frozen=True)
class RecordedRun:
    """One entry of the ledger as a run, before it is two events."""

    sequence: int
    event_hash: str
    recorded_at: datetime
    job: str
    purpose: str
    inputs: Sequence[Described]
    outputs: Sequence[Described]
    parameters: Mapping[str, str]
    facets: Mapping[str, RunFacet]


def run_events(connection: Connection, *, namespace: str = DEFAULT_NAMESPACE, after: int = 0) -> Iterator[RunEvent]:
    """The events of every run that the ledger recorded after the entry `after`, in order.

    An audit whose report is recorded later than `after` comes (again) then, with the report among its outputs.

    Args:
        connection: on the ledger or its snapshot.
        namespace: of jobs and datasets; name your installation here where several send to one catalogue.
        after: sequence of the last ledger entry that was exported.
    """
    set_producer(PRODUCER)
    for run in recorded_runs(connection, namespace=namespace, after=after):
        yield from _events(run, namespace)


def recorded_runs(connection: Connection, *, namespace: str, after: int) -> Iterator[RecordedRun]:
    """As `run_events`, one item a run."""
    query = """
        SELECT sequence, event_hash, recorded_at, kind, subject FROM event
        WHERE sequence > ? AND kind IN ('model_version', 'index', 'fidelity', 'report') ORDER BY sequence"""
    readers: Mapping[str, Callable[..., dict[str, Any]]] = {
        "model_version": _ingest,
        "index": _index,
        "fidelity": _calibration,
        "report": _audit,
    }
    for sequence, event_hash, recorded_at, kind, subject in connection.execute(query, [after]).fetchall():
        content = readers[kind](connection, namespace, subject, sequence)
        if content:
            yield RecordedRun(sequence, event_hash, recorded_at, **content)


def _ingest(connection: Connection, namespace: str, subject: str, _: int) -> dict[str, Any]:
    version = recorded(queries.model_version(connection, subject), subject)
    serving = queries.checkpoints_of(connection, subject)[-1]
    run = recorded(queries.run(connection, version.run_id), version.run_id)
    return {
        "job": f"ingest.{version.name}",
        "purpose": "Takes a registered model version into the ledger: its weights, dataset version, run and adapter.",
        "inputs": [datasets.training_data(connection, namespace, version.dataset_version_id)],
        "outputs": [datasets.model(namespace, version, serving)],
        "parameters": {
            "model_version": version.model_version_id,
            **({"mlflow_run_id": run.run_id} if run.is_in_mlflow else {}),
            "mlflow_run_name": run.name,
            "checkpoint_sha256": serving.checkpoint_id,
            "adapter": version.adapter,
            "adapter_sha256": version.adapter_sha256,
        },
        "facets": {},
    }


def _index(connection: Connection, namespace: str, subject: str, _: int) -> dict[str, Any]:
    index = recorded(queries.index(connection, subject), subject)
    configuration = {f"feature.{key}": _text(value) for key, value in index.feature_config.items() if key != "groups"}
    return {
        "job": f"index.{_model_of(connection, index.checkpoint_id)}",
        "purpose": "Measures and stores a projected gradient for every training example.",
        "inputs": [
            datasets.training_data(connection, namespace, index.dataset_version_id),
            *_models(connection, namespace, index.checkpoint_id),
        ],
        "outputs": [datasets.gradient_index(connection, namespace, index)],
        "parameters": {"index": index.index_id, "checkpoint_sha256": index.checkpoint_id, **configuration},
        "facets": {},
    }


def _calibration(connection: Connection, namespace: str, subject: str, sequence: int) -> dict[str, Any]:
    found = connection.execute(
        "SELECT method, metric, value, standard_error, ceiling FROM fidelity WHERE event_sequence = ? ORDER BY ALL",
        [sequence],
    ).fetchall()
    [checkpoint_id, *_] = subject.split(", ")
    measured = Counter(f"{method} {metric}" for method, metric, *_ in found)
    return {
        "job": f"calibrate.{_model_of(connection, checkpoint_id)}",
        "purpose": "Measures by further training how far each attribution method can be trusted on one checkpoint.",
        "inputs": list(_models(connection, namespace, checkpoint_id)),
        "outputs": [],
        "parameters": {
            "checkpoint_sha256": checkpoint_id,
            **{f"figures.{name}": str(count) for name, count in measured.items()},
        },
        "facets": {},
    }


def _audit(connection: Connection, namespace: str, subject: str, _: int) -> dict[str, Any]:
    details = queries.audit_details(connection, subject)
    audit, version = details.audit, details.model_version
    report = recorded(queries.report_of(connection, subject), subject)
    indexes = [recorded(queries.index(connection, each), each) for each in audit.index_ids]
    serving = queries.checkpoints_of(connection, version.model_version_id)[-1]
    notes, evidence = details.method_notes, audit_evidence(connection, subject)
    parameters = {name: _text(value) for name, value in audit.parameters.items()}
    facet = GradtrailAttributionRunFacet(
        auditId=audit.audit_id,
        modelVersion=version.model_version_id,
        method=audit.method,
        methodParameters=parameters,
        signAndUnit=". ".join(str(notes[key]).rstrip(".") for key in ("sign", "unit") if key in notes),
        outputs=len(audit.outputs),
        auditRoot=evidence.audit_root,
        eventHash=evidence.event_hash,
        eventSequence=evidence.event_sequence,
        fidelity=[
            {
                "metric": each.metric,
                "value": each.value,
                "standardError": each.standard_error,
                "ceiling": each.ceiling,
                "queries": each.queries,
            }
            for each in _fidelities(connection, version, audit.method, audit.weighting_id, details.event_sequence)
            if all(audit.parameters.get(name) == value for name, value in each.parameters.items())
        ],
        shares=[
            {
                "attribute": share.attribute,
                "value": share.value,
                "share": share.share,
                "trainingShare": share.training_share,
            }
            for share in details.shares
            if share.output_id is None and share.side == "proponent" and share.attribute in SHARED
        ],
        findings=dict(Counter(finding.severity for finding in details.findings)),
        reportUri=report.html_uri,
        reportSha256=report.html_sha256,
    )
    return {
        "job": f"audit.{version.name}",
        "purpose": "Says which training examples, sources and licences stand behind outputs of a model.",
        "inputs": [
            datasets.audited_outputs(namespace, audit),
            datasets.training_data(connection, namespace, details.dataset_version_id),
            datasets.model(namespace, version, serving),
            *(datasets.gradient_index(connection, namespace, index) for index in indexes),
        ],
        "outputs": [datasets.audit_report(namespace, audit, report)],
        "parameters": {"audit": audit.audit_id, "method": audit.method, **parameters},
        "facets": {"gradtrailAttribution": facet},
    }


def _events(run: RecordedRun, namespace: str) -> Iterator[RunEvent]:
    parameters = [
        execution_parameters_run.ExecutionParameter(key=key, value=value) for key, value in run.parameters.items()
    ]
    engine = processing_engine_run.ProcessingEngineRunFacet(__version__, name="gradtrail")
    common: dict[str, RunFacet] = {"processing_engine": engine}
    complete: dict[str, RunFacet] = {
        "executionParameters": execution_parameters_run.ExecutionParametersRunFacet(parameters),
        **run.facets,
    }
    job = Job(
        namespace,
        run.job,
        facets={
            "jobType": job_type_job.JobTypeJobFacet("BATCH", "GRADTRAIL", "JOB"),
            "documentation": documentation_job.DocumentationJobFacet(run.purpose),
        },
    )
    run_id = str(uuid5(NAMESPACE_URL, f"gradtrail:{run.event_hash}"))
    for state, facets in ((RunState.START, common), (RunState.COMPLETE, common | complete)):
        yield RunEvent(
            eventTime=run.recorded_at.isoformat(),
            run=Run(run_id, facets=facets),
            job=job,
            eventType=state,
            inputs=[each.read() for each in run.inputs],
            outputs=[each.written() for each in run.outputs],
        )


def _fidelities(
    connection: Connection, version: ModelVersion, method: str, weighting_id: str, before: int
) -> Iterator[Fidelity]:
    for found in own_fidelities(connection, version, before):
        told = found.evidence.get("longest") and not found.not_measured_because
        if told and (found.method, found.weighting_id) == (method, weighting_id):
            yield found


def _models(connection: Connection, namespace: str, checkpoint_id: str) -> Iterator[Described]:
    for version in queries.model_versions(connection):
        if version.checkpoint_ids[-1] == checkpoint_id:
            yield datasets.model(
                namespace, version, recorded(queries.checkpoint(connection, checkpoint_id), checkpoint_id)
            )


def _model_of(connection: Connection, checkpoint_id: str) -> str:
    query = """
        SELECT name FROM model_version JOIN model_version_checkpoint USING (model_version_id)
        WHERE checkpoint_id = ? ORDER BY name LIMIT 1"""
    return str(connection.execute(query, [checkpoint_id]).fetchall()[0][0])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
