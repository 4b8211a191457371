"""One audit as a W3C PROV document (https://www.w3.org/TR/prov-dm/), for tools that read provenance.

Influence is `wasInfluencedBy`, never `wasDerivedFrom`: an attribution is a measured tendency, with an error, and not
the record of a copy. What is recorded as fact (an audit used an index, a run wrote a checkpoint) uses the PROV
relations for facts. Ids are percent-encoded into qualified names.
"""

from __future__ import annotations

from urllib.parse import quote

import duckdb
from prov.model import ProvDocument

from gradtrail import __version__
from gradtrail.lineage.connections import recorded
from gradtrail.lineage.read import queries
from gradtrail.lineage.read.answers import AuditDetails

Connection = duckdb.DuckDBPyConnection
NAMESPACE = "https://github.com/gradtrail/gradtrail/ns#"


def provenance_json(connection: Connection, audit_id: str) -> str:
    """PROV-JSON of an audit: outputs, influential examples, dataset version, run, checkpoint, indexes, report.

    Raises:
        NotFoundError: no such audit.
    """
    details = queries.audit_details(connection, audit_id)
    document = ProvDocument()
    document.add_namespace("gradtrail", NAMESPACE)
    _add_model(document, connection, details)
    _add_audit(document, connection, details)
    _add_influences(document, connection, details)
    return str(document.serialize(format="json", indent=2))


def _add_model(document: ProvDocument, connection: Connection, details: AuditDetails) -> None:
    version = details.model_version
    dataset = recorded(queries.dataset_version(connection, version.dataset_version_id), version.dataset_version_id)
    run = recorded(queries.run(connection, version.run_id), version.run_id)
    serving = queries.checkpoints_of(connection, version.model_version_id)[-1]
    document.entity(
        _name("dataset_version", dataset.dataset_version_id),
        {
            "prov:label": dataset.name,
            "gradtrail:examples": dataset.example_count,
            "prov:location": dataset.manifest_uri,
        },
    )
    document.entity(
        _name("checkpoint", serving.checkpoint_id),
        {"gradtrail:step": serving.step, "gradtrail:format": serving.format, "prov:location": serving.weights_uri},
    )
    document.entity(_name("model_version", version.model_version_id), {"prov:label": version.model_version_id})
    document.activity(_name("run", run.run_id), run.started_at, None, {"prov:label": run.name})
    document.usage(_name("run", run.run_id), _name("dataset_version", dataset.dataset_version_id))
    document.generation(_name("checkpoint", serving.checkpoint_id), _name("run", run.run_id))
    document.specialization(
        _name("checkpoint", serving.checkpoint_id), _name("model_version", version.model_version_id)
    )


def _add_audit(document: ProvDocument, connection: Connection, details: AuditDetails) -> None:
    audit = details.audit
    activity, agent = _name("audit", audit.audit_id), "gradtrail:software"
    serving = queries.checkpoints_of(connection, details.model_version.model_version_id)[-1]
    document.agent(
        agent, {"prov:type": document.valid_qualified_name("prov:SoftwareAgent"), "gradtrail:version": __version__}
    )
    document.activity(
        activity,
        None,
        details.recorded_at,
        {"gradtrail:method": audit.method, "gradtrail:event": details.event_sequence},
    )
    document.association(activity, agent)
    for index_id in audit.index_ids:
        index = recorded(queries.index(connection, index_id), index_id)
        document.entity(_name("index", index_id), {"prov:location": index.table_uri})
        document.usage(activity, _name("index", index_id))
    for output in queries.outputs(connection, [output_id for output_id, _ in audit.outputs]):
        produced, entity = _name("inference", output.output_id), _name("output", output.output_id)
        document.entity(entity, {"gradtrail:payload_sha256": output.payload_sha256})
        document.activity(produced, output.produced_at, output.produced_at)
        document.usage(produced, _name("checkpoint", serving.checkpoint_id))
        document.generation(entity, produced, output.produced_at)
        document.usage(activity, entity)
    report = queries.report_of(connection, audit.audit_id)
    if report is not None:
        entity = _name("report", report.html_sha256)
        document.entity(entity, {"prov:location": report.html_uri, "gradtrail:sha256": report.html_sha256})
        document.generation(entity, activity, report.recorded_at)


def _add_influences(document: ProvDocument, connection: Connection, details: AuditDetails) -> None:
    dataset_version_id = details.dataset_version_id
    known = queries.examples(connection, dataset_version_id, {each.example_id for each in details.attributions})
    for example in known.values():
        entity = _name("example", f"{example.example_id}@{dataset_version_id}")
        said = {"content_sha256": example.content_sha256, **example.attributes}
        document.entity(entity, [(f"gradtrail:{quote(name, safe='')}", value) for name, value in said.items()])
        document.membership(_name("dataset_version", dataset_version_id), entity)
    for number, attribution in enumerate(details.attributions, start=1):
        document.influence(
            _name("output", attribution.output_id),
            _name("example", f"{attribution.example_id}@{dataset_version_id}"),
            _name("influence", f"{details.audit.audit_id}/{number}"),
            {
                "gradtrail:score": attribution.score,
                "gradtrail:side": attribution.side,
                "gradtrail:rank": attribution.rank,
                "gradtrail:audit": details.audit.audit_id,
            },
        )


def _name(kind: str, identifier: str) -> str:
    return f"gradtrail:{kind}.{quote(identifier, safe='')}"
