"""One model version as a CycloneDX machine-learning bill of materials (https://cyclonedx.org/capabilities/mlbom/).

The model is the described component; its dataset versions are data components with their licences. The library has no
model card yet, so that one is added to its JSON and checked against the schema that the library carries.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import duckdb
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.spdx import is_supported_id
from cyclonedx.validation.json import JsonStrictValidator

from gradtrail import __version__
from gradtrail.errors import LedgerError, NotFoundError
from gradtrail.lineage.connections import recorded
from gradtrail.lineage.read import queries
from gradtrail.lineage.read.answers import AttributeCount
from gradtrail.lineage.read.measuring_adapters import own_fidelities
from gradtrail.nouns import DatasetVersion, Fidelity, ModelVersion

Connection = duckdb.DuckDBPyConnection
LICENCE, SOURCE = "licence", "source"
BLANK = "(blank)"
"""What stands for a value of nothing but space in the name of a property; the format has no licence without a name."""


def bill_of_materials(connection: Connection, model_version_id: str) -> str:
    """CycloneDX 1.6 JSON of a model version: weights, dataset versions with licences, training run, measured fidelity.

    Raises:
        NotFoundError: no such model version.
        LedgerError: what the ledger holds does not make a valid bill.
    """
    version = queries.model_version(connection, model_version_id)
    if version is None:
        known = ", ".join(each.model_version_id for each in queries.model_versions(connection)) or "none"
        raise NotFoundError(f"There is no model version {model_version_id} in the ledger.", f"Ingested: {known}.")
    dataset = recorded(queries.dataset_version(connection, version.dataset_version_id), version.dataset_version_id)
    document = json.loads(JsonV1Dot6(_bom(connection, version, dataset)).output_as_string())
    document["metadata"]["component"]["modelCard"] = _model_card(connection, version, dataset)
    text = json.dumps(document, indent=2, sort_keys=True)
    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if fault is not None:
        raise LedgerError(
            f"{model_version_id} does not make a valid CycloneDX document: {fault}.",
            "Look at its name, licences and sources with `gradtrail sql`.",
        )
    return text


def _bom(connection: Connection, version: ModelVersion, dataset: DatasetVersion) -> Bom:
    serving = queries.checkpoints_of(connection, version.model_version_id)[-1]
    run = recorded(queries.run(connection, version.run_id), version.run_id)
    counts = queries.attribute_counts(connection, dataset.dataset_version_id)
    licences = [each for each in counts if each.attribute == LICENCE]
    sources = [each for each in counts if each.attribute == SOURCE]
    named = [each.value for each in licences if each.value.strip()]
    model = Component(
        name=version.name,
        version=str(version.version),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=version.model_version_id,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=serving.checkpoint_id)],
        properties=_properties(
            {
                "format": serving.format,
                "bytes": str(serving.byte_size),
                "step": str(serving.step),
                "adapter": version.adapter,
                "adapter_sha256": version.adapter_sha256,
                **({"mlflow_run_id": run.run_id} if run.is_in_mlflow else {}),
                **{f"training.{name}": value for name, value in run.parameters.items()},
            }
        ),
    )
    data = Component(
        name=dataset.name,
        version=dataset.dataset_version_id,
        type=ComponentType.DATA,
        bom_ref=dataset.dataset_version_id,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=dataset.dataset_version_id)],
        licenses=[_licence(name) for name in named],
        properties=_properties(
            {
                "examples": str(dataset.example_count),
                "manifest": dataset.manifest_uri,
                **_counted("licence", licences),
                **_counted("source", sources),
            }
        ),
    )
    tool = Component(name="gradtrail", version=__version__, type=ComponentType.APPLICATION)
    bom = Bom(components=[data], serial_number=uuid5(NAMESPACE_URL, f"gradtrail:{version.model_version_id}"))
    bom.metadata.component = model
    bom.metadata.tools.components.add(tool)
    bom.register_dependency(model, [data])
    return bom


def _model_card(connection: Connection, version: ModelVersion, dataset: DatasetVersion) -> dict[str, Any]:
    figures = [
        {
            "type": f"{each.metric} of {each.method}",
            "value": f"{each.value:.4f}",
            "confidenceInterval": {
                "lowerBound": f"{each.value - 2 * each.standard_error:.4f}",
                "upperBound": f"{each.value + 2 * each.standard_error:.4f}",
            },
        }
        for each in _chosen(own_fidelities(connection, version))
    ]
    return {
        "modelParameters": {"datasets": [{"ref": dataset.dataset_version_id}]},
        **({"quantitativeAnalysis": {"performanceMetrics": figures}} if figures else {}),
    }


def _chosen(fidelities: Sequence[Fidelity]) -> list[Fidelity]:
    """The figures of what `auto` would take, of the latest calibration first."""
    return [each for each in fidelities if each.evidence.get("chosen") and not each.not_measured_because][:1]


def _licence(name: str) -> DisjunctiveLicense:
    return DisjunctiveLicense(id=name) if is_supported_id(name) else DisjunctiveLicense(name=name)


def _counted(attribute: str, counts: Sequence[AttributeCount]) -> dict[str, str]:
    """Examples by value; those whose value is blank, in whichever way, together."""
    examples = Counter[str]()
    for each in counts:
        examples[f"{attribute}.{each.value if each.value.strip() else BLANK}"] += each.examples
    return {name: str(count) for name, count in examples.items()}


def _properties(values: Mapping[str, str]) -> list[Property]:
    return [Property(name=f"gradtrail:{name}", value=value) for name, value in values.items()]
