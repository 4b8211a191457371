"""Exports say what the ledger says, in forms that the libraries of those standards read back."""

import json
import resource
import threading
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attr
import pytest
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import ComponentType
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from jsonschema import Draft202012Validator
from openlineage.client import generated
from openlineage.client.event_v2 import RunEvent
from openlineage.client.serde import Serde
from prov.model import ProvDerivation, ProvDocument, ProvInfluence
from referencing import Registry, Resource

from gradtrail.errors import GradtrailError, NotFoundError, UsageError
from gradtrail.lineage.chain.proofs import audit_evidence
from gradtrail.lineage.exports import openlineage_events
from gradtrail.lineage.exports.cyclonedx import bill_of_materials
from gradtrail.lineage.exports.openlineage_events import GradtrailAttributionRunFacet, run_events
from gradtrail.lineage.exports.openlineage_sending import append_to_file, send
from gradtrail.lineage.exports.provenance import provenance_json
from gradtrail.lineage.read import queries
from gradtrail.nouns import Checkpoint, DatasetVersion, ManifestRow, ModelVersion, Output, Run

FACET_SCHEMA = Path(openlineage_events.__file__).parents[1] / "facets" / "GradtrailAttributionRunFacet.json"
RUN_FACET = "https://openlineage.io/spec/2-0-2/OpenLineage.json"


@pytest.fixture
def connection(story_ledger):
    with closing(story_ledger.read_snapshot()) as opened:
        yield opened


@pytest.fixture
def events(connection) -> list[dict[str, Any]]:
    return [json.loads(Serde.to_json(event)) for event in run_events(connection)]


def facets_of(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """Every facet inside an event, with its name."""
    found = []
    for name, inner in value.items() if isinstance(value, dict) else []:
        if isinstance(inner, dict) and "_schemaURL" in inner:
            found.append((name, inner))
        else:
            found += facets_of(inner)
    if isinstance(value, list):
        for inner in value:
            found += facets_of(inner)
    return found


def published_facets() -> dict[str, type]:
    """The classes that OpenLineage generates from its published schemas, by schema address."""
    modules = [getattr(generated, name) for name in dir(generated) if not name.startswith("_")]
    classes = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    return {each._get_schema(): each for each in classes if attr.has(each) and hasattr(each, "_get_schema")}


def test_every_run_of_the_ledger_starts_and_completes_once(events):
    jobs = [(event["job"]["name"], event["eventType"]) for event in events]
    assert jobs == [
        (f"{job}.digits", state) for job in ("ingest", "index", "calibrate", "audit") for state in ("START", "COMPLETE")
    ]
    assert len({event["run"]["runId"] for event in events}) == 4


def test_the_same_ledger_gives_the_same_runs_and_only_what_is_new_after_an_entry(connection, events):
    again = [json.loads(Serde.to_json(event)) for event in run_events(connection)]
    assert again == events
    last = queries.events(connection, 1)[0].sequence
    assert list(run_events(connection, after=last)) == []
    assert [event.job.name for event in run_events(connection, after=last - 1)] == ["audit.digits"] * 2


def test_every_facet_has_the_fields_that_its_published_schema_asks_for(events):
    known = published_facets() | {GradtrailAttributionRunFacet._get_schema(): GradtrailAttributionRunFacet}
    facets = [facet for event in events for facet in facets_of(event)]
    assert len(facets) > 50
    for name, facet in facets:
        fields = attr.fields_dict(known[facet["_schemaURL"]])
        needed = {key for key, field in fields.items() if field.default is attr.NOTHING}
        assert needed <= facet.keys() <= fields.keys(), name
        assert facet["_producer"].startswith("https://github.com/gradtrail/gradtrail/tree/v")


def test_the_chain_joins_by_dataset_names(events):
    audit = events[-1]
    read = {each["name"]: each["facets"] for each in audit["inputs"]}
    assert set(read) == {"outputs/digits", "dataset/digits-train", "model/digits", "index/digits-train"}
    assert read["dataset/digits-train"]["version"]["datasetVersion"] == "d1" * 32
    licences = {tag["value"] for tag in read["dataset/digits-train"]["tags"]["tags"] if tag["key"] == "licence"}
    assert licences == {"CC-BY", "MIT", "unknown"}
    ingested = next(event for event in events if event["job"]["name"] == "ingest.digits")
    assert ingested["outputs"][0]["name"] == "model/digits"
    assert audit["outputs"][0]["name"] == "report/digits"


def test_the_attribution_facet_follows_its_schema_and_carries_the_root_of_the_audit(connection, events, story):
    facet = events[-1]["run"]["facets"]["gradtrailAttribution"]
    schema = json.loads(FACET_SCHEMA.read_text())
    base = {"$defs": {"RunFacet": {"type": "object", "required": ["_producer", "_schemaURL"]}}}
    registry = Registry().with_resources(
        [(RUN_FACET, Resource.opaque(base)), (schema["$id"], Resource.from_contents(schema))]
    )
    assert facet["_schemaURL"] == f"{schema['$id']}#/$defs/GradtrailAttributionRunFacet"
    validator = Draft202012Validator({"$ref": facet["_schemaURL"]}, registry=registry)
    assert list(validator.iter_errors(facet)) == []
    evidence = audit_evidence(connection, story.audit.audit_id)
    assert (facet["auditRoot"], facet["eventHash"]) == (evidence.audit_root, evidence.event_hash)
    assert {share["value"]: share["share"] for share in facet["shares"]} == {"forum": 0.75, "archive": 0.25}
    assert list(validator.iter_errors(facet | {"outputs": 0}))


def test_events_are_added_to_a_file_line_by_line(connection, tmp_path):
    path = tmp_path / "lineage" / "events.jsonl"
    assert append_to_file(run_events(connection), path) == 8
    assert append_to_file(run_events(connection), path) == 8
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 16


def test_a_line_that_a_kill_left_unfinished_costs_no_event(connection, tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"eventTime": "2026-')
    assert append_to_file(run_events(connection), path) == 8
    torn, *lines = path.read_text().splitlines()
    assert torn == '{"eventTime": "2026-'
    assert len([json.loads(line) for line in lines]) == 8


def test_a_file_that_has_no_room_keeps_what_it_had_and_gets_everything_later(connection, tmp_path):
    path = tmp_path / "events.jsonl"
    assert append_to_file(run_events(connection), path) == 8
    before = path.read_bytes()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) * 5 // 4, unlimited[1]))
    try:
        with pytest.raises(GradtrailError, match=r"events\.jsonl did not take OpenLineage event [2-8]: .*too large"):
            append_to_file(run_events(connection), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert path.read_bytes() == before
    assert append_to_file(run_events(connection), path) == 8
    assert path.read_bytes() == before * 2


def test_a_file_that_cannot_be_opened_is_named(connection, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "events.jsonl"):
        with pytest.raises(GradtrailError, match=f"{path} did not take OpenLineage event 1"):
            append_to_file(run_events(connection), path)


class Consumer(HTTPServer):
    """Takes OpenLineage events as a catalogue does, and refuses those of one job."""

    def __init__(self, refused_job: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refused_job, self.received = refused_job, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Consumer

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        refused = event["job"]["name"] == self.server.refused_job
        if not refused:
            self.server.received.append((self.path, self.headers["Authorization"], event))
        self.send_response(422 if refused else 201)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_consumer_gets_every_event_with_the_key(connection):
    consumer = Consumer()
    assert send(run_events(connection), consumer.url, api_key="secret") == 8
    consumer.shutdown()
    assert {(path, key) for path, key, _ in consumer.received} == {("/api/v1/lineage", "Bearer secret")}
    assert [event["job"]["name"] for *_, event in consumer.received][::2] == [
        "ingest.digits", "index.digits", "calibrate.digits", "audit.digits",
    ]  # fmt: skip


def test_a_consumer_that_refuses_or_is_away_is_named(connection):
    consumer = Consumer(refused_job="index.digits")
    with pytest.raises(GradtrailError, match=r"did not take event 3: .*422") as refusal:
        send(run_events(connection), consumer.url)
    consumer.shutdown()
    assert consumer.url in str(refusal.value)
    assert len(consumer.received) == 2
    with pytest.raises(UsageError, match="not the address"):
        send(run_events(connection), "ftp://catalogue")


def test_an_event_of_the_client_survives_its_own_reading(connection):
    for event in run_events(connection):
        assert isinstance(event, RunEvent)
        assert attr.asdict(event)["run"]["runId"] == event.run.runId


def test_influence_is_influence_and_never_derivation(connection, story):
    document = ProvDocument.deserialize(content=provenance_json(connection, story.audit.audit_id), format="json")
    influences = list(document.get_records(ProvInfluence))
    assert len(influences) == len(story.evidence["attributions"])
    assert not list(document.get_records(ProvDerivation))
    score = {str(name): value for record in influences for name, value in record.attributes if "rank" in str(name)}
    assert score
    names = {str(value) for record in influences for _, value in record.formal_attributes}
    assert f"gradtrail:example.{quote('train-00@' + 'd1' * 32, safe='')}" in names


def test_ids_with_any_characters_make_valid_names(story_ledger, story):
    awkward = 'inbox:a b/"ü"; DROP'
    story_ledger.record_outputs(
        [Output(awkward, "inbox", awkward[6:], story.outputs[0].produced_at, "digits/1", "0" * 64)]
    )

    audit = replace(story.audit, outputs=((awkward, "emitted"),))
    evidence = {
        name: [replace(row, output_id=awkward) for row in rows if getattr(row, "output_id", None) == "inbox:0"]
        for name, rows in story.evidence.items()
        if name != "method_notes"
    }
    story_ledger.record_audit(audit, method_notes={}, **evidence)
    with story_ledger.read() as opened:
        document = ProvDocument.deserialize(content=provenance_json(opened, audit.audit_id), format="json")
    assert any(quote(awkward, safe="") in str(record.identifier) for record in document.get_records())


def test_the_bill_of_materials_is_read_back_with_datasets_and_licences(connection):
    text = bill_of_materials(connection, "digits/1")
    bom = Bom.from_json(json.loads(text))
    assert bom.metadata.component.type is ComponentType.MACHINE_LEARNING_MODEL
    [data] = bom.components
    assert (data.type, data.version) == (ComponentType.DATA, "d1" * 32)
    licences = {licence.id or licence.name for licence in data.licenses}
    assert licences == {"CC-BY", "MIT", "unknown"}
    assert next(licence for licence in data.licenses if licence.id == "MIT")
    card = json.loads(text)["metadata"]["component"]["modelCard"]
    assert card["modelParameters"]["datasets"] == [{"ref": "d1" * 32}]
    [figure] = card["quantitativeAnalysis"]["performanceMetrics"]
    assert figure["value"] == "0.8300"


@pytest.mark.parametrize("values", [("", "MIT"), (" ", "\n", ""), ("",)])
def test_a_blank_licence_is_counted_and_makes_no_licence_up(empty_ledger, values):
    manifest = [
        ManifestRow(f"e{number}", f"{number:064x}", {"licence": value, "source": value})
        for number, value in enumerate(values)
    ]
    dataset = DatasetVersion("d1" * 32, "data", len(manifest), "file:///m.jsonl")
    checkpoint = Checkpoint("c1" * 32, 1, 0.1, "safetensors", "mlflow:/1", "file:///1", "c1" * 32, 4)
    version = ModelVersion("blank", 1, "run", dataset.dataset_version_id, "demo:Adapter", "aa" * 32, ("c1" * 32,))
    empty_ledger.record_dataset_version(dataset, manifest, ())
    empty_ledger.record_model_version(version, Run("run", "0", "", datetime(2026, 1, 1, tzinfo=UTC), {}), [checkpoint])
    with empty_ledger.read() as opened:
        text = bill_of_materials(opened, "blank/1")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    [data] = json.loads(text)["components"]
    assert [each["license"]["id"] for each in data.get("licenses", [])] == ["MIT"] * ("MIT" in values)
    properties = {each["name"]: each["value"] for each in data["properties"]}
    blank = str(len([value for value in values if not value.strip()]))
    assert (properties["gradtrail:licence.(blank)"], properties["gradtrail:source.(blank)"]) == (blank, blank)


def test_a_bill_of_an_unknown_model_version_names_those_there_are(connection):
    with pytest.raises(NotFoundError, match=r"digits/9 .*digits/1"):
        bill_of_materials(connection, "digits/9")
