"""Self-influence of every training example, as a Parquet file and its top: a detector of wrong labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from gradtrail.attribution.methods.registry import find_method, settled
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.scoring.self_scores import (
    SelfInfluence,
    require_self_influence,
    self_influence,
    summed_self_influence,
)
from gradtrail.digests import sha256_json
from gradtrail.lineage.read import queries
from gradtrail.storage.files.atomic import replacing
from gradtrail.tasks.audit.preparing import fitted_needs, fitting_data, method_parameters
from gradtrail.tasks.core.extensions import method_source
from gradtrail.tasks.core.models import pinned_model
from gradtrail.tasks.core.progress import progress_bar
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.opened import method_indexes, open_index
from gradtrail.tasks.ingest.taking_in import resolve_version

_ROWS_PER_GROUP = 65_536
_SCHEMA = pa.schema(
    [
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("self_influence", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class SelfInfluenceTable:
    """Where the table is, and its beginning: example ids with values, largest first, and their attributes."""

    path: str
    index_ids: tuple[str, ...]
    method: str
    example_count: int
    top: tuple[tuple[str, float], ...]
    attributes: Mapping[str, Mapping[str, str]]


def write_self_influence(
    workspace: Workspace, reference: str, asked: MethodSpec, top: int, device: str = "cpu"
) -> SelfInfluenceTable:
    """Compute and write the self-influence of every indexed example; a repeat gives the same file.

    Raises:
        NotFoundError: if an index was not built.
        UsageError: for a method or parameters that do not serve this.
    """
    version = resolve_version(workspace, reference)
    pinned = pinned_model(workspace, version.model_version_id)
    spec = settled(asked, pinned.adapter)
    method = find_method(spec.method)
    require_self_influence(method)
    index_ids = method_indexes(workspace, version.model_version_id, method.name)
    opened = [open_index(workspace, pinned, index_id) for index_id in index_ids]
    parameters = method_parameters(pinned, spec, [each.checkpoint for each in opened])
    total = sum(each.index.coverage.indexed_examples for each in opened)
    with progress_bar("self-influence", total) as bar:

        def counted(parts: SelfInfluence) -> SelfInfluence:
            for example_ids, values in parts:
                yield example_ids, values
                bar.advance(len(example_ids))

        values = summed_self_influence(
            [
                counted(
                    self_influence(
                        spec,
                        each.rows,
                        each.plan,
                        stored_weighting=each.plan.stored_weighting,
                        **fitted_needs(workspace, each.index.index_id, fitting_data(pinned, each, spec, device), spec),
                    )
                )
                for each in opened
            ]
        )
    ranked = sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))
    parameters |= method_source(workspace, method.name)
    key = sha256_json({"indexes": list(index_ids), "method": method.name, "parameters": parameters})
    path = workspace.root / "self_influence" / f"{key}.parquet"
    with replacing(path) as temporary, pq.ParquetWriter(temporary, _SCHEMA) as writer:
        for group in _groups(ranked):
            writer.write_table(group)
    best = tuple(ranked[:top])
    with workspace.ledger().read() as connection:
        found = queries.examples(connection, pinned.dataset.dataset_version_id, [example_id for example_id, _ in best])
    return SelfInfluenceTable(
        path=str(path),
        index_ids=tuple(index_ids),
        method=method.name,
        example_count=len(ranked),
        top=best,
        attributes={example_id: dict(example.attributes) for example_id, example in found.items()},
    )


def _groups(ranked: Sequence[tuple[str, float]]) -> Iterator[pa.Table]:
    remaining = enumerate(ranked, start=1)
    while group := list(islice(remaining, _ROWS_PER_GROUP)):
        records = [{"rank": rank, "example_id": name, "self_influence": value} for rank, (name, value) in group]
        yield pa.Table.from_pylist(records, schema=_SCHEMA)
