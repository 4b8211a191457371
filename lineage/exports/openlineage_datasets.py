"""What gradtrail reads and writes, as OpenLineage datasets: training data, models, indexes, outputs, reports.

A dataset is named by what stays the same (`dataset/digits-train`, `model/digits`); which one of it is meant stands in
the version facet, so that a catalogue shows one node with a history and not a node for each run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import duckdb
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import (
    DatasetFacet,
    dataset_type_dataset,
    dataset_version_dataset,
    datasource_dataset,
    input_statistics_input_dataset,
    output_statistics_output_dataset,
    schema_dataset,
    tags_dataset,
)

from gradtrail.lineage.connections import recorded
from gradtrail.lineage.read import queries
from gradtrail.lineage.read.answers import RecordedReport
from gradtrail.nouns import Audit, Checkpoint, Index, ModelVersion

Connection = duckdb.DuckDBPyConnection
TAGGED = ("source", "licence")
MOST_TAGS = 1000
"""Values an attribute may have and still be listed as tags of the dataset."""


@dataclass(frozen=True)
class Described:
    """A dataset with its facets; `rows` is how many it has, where that is known."""

    namespace: str
    name: str
    facets: dict[str, DatasetFacet] = field(default_factory=dict)
    rows: int | None = None

    def read(self) -> InputDataset:
        """As the input of a run."""
        statistics = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(rowCount=self.rows)
        return InputDataset(
            self.namespace,
            self.name,
            facets=dict(self.facets),
            inputFacets={} if self.rows is None else {"inputStatistics": statistics},
        )

    def written(self) -> OutputDataset:
        """As the output of a run."""
        statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=self.rows)
        return OutputDataset(
            self.namespace,
            self.name,
            facets=dict(self.facets),
            outputFacets={} if self.rows is None else {"outputStatistics": statistics},
        )


def training_data(connection: Connection, namespace: str, dataset_version_id: str) -> Described:
    """A dataset version, with its columns, and its sources and licences as tags."""
    dataset = recorded(queries.dataset_version(connection, dataset_version_id), dataset_version_id)
    counts = queries.attribute_counts(connection, dataset_version_id)
    columns = ["example_id", "content_sha256", *dict.fromkeys(count.attribute for count in counts)]
    values = Counter(count.attribute for count in counts)
    tags = [
        tags_dataset.TagsDatasetFacetFields(key=count.attribute, value=count.value, source="gradtrail")
        for count in counts
        if count.attribute in TAGGED and values[count.attribute] <= MOST_TAGS
    ]
    fields = [schema_dataset.SchemaDatasetFacetFields(name=name, type="VARCHAR") for name in columns]
    facets = _facets(dataset_version_id, dataset.manifest_uri, "DATASET", "TRAINING_DATA")
    facets["schema"] = schema_dataset.SchemaDatasetFacet(fields=fields)
    facets["tags"] = tags_dataset.TagsDatasetFacet(tags=tags)
    return Described(namespace, f"dataset/{dataset.name}", facets, dataset.example_count)


def model(namespace: str, version: ModelVersion, checkpoint: Checkpoint) -> Described:
    """A model version, by its serving checkpoint."""
    facets = _facets(str(version.version), checkpoint.weights_uri, "MODEL", checkpoint.format.upper())
    return Described(namespace, f"model/{version.name}", facets)


def gradient_index(connection: Connection, namespace: str, index: Index) -> Described:
    """A gradient index; one name for each dataset it was taken over."""
    dataset = recorded(queries.dataset_version(connection, index.dataset_version_id), index.dataset_version_id)
    facets = _facets(index.index_id, index.table_uri, "TABLE", "GRADIENT_INDEX")
    return Described(namespace, f"index/{dataset.name}", facets, index.coverage.indexed_examples)


def audited_outputs(namespace: str, audit: Audit) -> Described:
    """The outputs that an audit examined; they are one dataset for each model."""
    name = audit.model_version_id.rpartition("/")[0]
    facets: dict[str, DatasetFacet] = {
        "datasetType": dataset_type_dataset.DatasetTypeDatasetFacet("TABLE", "MODEL_OUTPUTS")
    }
    return Described(namespace, f"outputs/{name}", facets, len(audit.outputs))


def audit_report(namespace: str, audit: Audit, report: RecordedReport) -> Described:
    """The report of an audit."""
    name = audit.model_version_id.rpartition("/")[0]
    return Described(namespace, f"report/{name}", _facets(audit.audit_id, report.html_uri, "FILE", "AUDIT_REPORT"))


def _facets(version: str, uri: str, kind: str, detail: str) -> dict[str, DatasetFacet]:
    return {
        "version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version),
        "dataSource": datasource_dataset.DatasourceDatasetFacet(name="gradtrail", uri=uri),
        "datasetType": dataset_type_dataset.DatasetTypeDatasetFacet(kind, detail),
    }
