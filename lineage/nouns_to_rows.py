"""From nouns to rows, one function a noun."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from math import isclose
from typing import Any

from gradtrail.digests import canonical_json, sha256_json
from gradtrail.errors import DataError
from gradtrail.lineage.rows import Rows, rows_of
from gradtrail.nouns import (
    Attribution,
    Audit,
    Checkpoint,
    DatasetVersion,
    ExampleInfluence,
    Fidelity,
    Finding,
    GroupContribution,
    Index,
    ManifestRow,
    ModelVersion,
    Output,
    OutputResult,
    Run,
    Share,
    Weighting,
)

_CONTRIBUTION_TOLERANCE = 1e-6


def dataset_rows(
    dataset: DatasetVersion, manifest: Iterable[ManifestRow], personal_names: Collection[str] = ()
) -> tuple[Rows, Rows, Rows]:
    """Rows of dataset_version, of example, and of personal_attribute: the attributes that `personal_names` lists.

    Raises:
        DataError: also when the manifest has another number of examples than the dataset version says.
    """
    header = rows_of(
        "dataset_version",
        [(dataset.dataset_version_id, dataset.name, dataset.example_count, dataset.manifest_uri)],
    )
    personal: list[tuple[str, str, str, str]] = []

    def example_records() -> Iterator[tuple[Any, ...]]:
        for position, row in enumerate(manifest):
            kept = {name: value for name, value in row.attributes.items() if name not in personal_names}
            for name in sorted(row.attributes.keys() - kept):
                personal.append((dataset.dataset_version_id, row.example_id, name, row.attributes[name]))
            yield dataset.dataset_version_id, row.example_id, position, row.content_sha256, kept

    examples = rows_of("example", example_records())
    if examples.count != dataset.example_count:
        raise DataError(
            f"Dataset version {dataset.dataset_version_id} says {dataset.example_count} examples, "
            f"its manifest has {examples.count}.",
            "Read the manifest again from its file; it may be cut short.",
        )
    return header, examples, rows_of("personal_attribute", personal)


def model_version_rows(
    model_version: ModelVersion, run: Run, checkpoints: Sequence[Checkpoint]
) -> tuple[Rows, Rows, Rows, Rows]:
    """Rows of model_version, model_version_checkpoint, training_run and checkpoint.

    Raises:
        DataError: also when run or checkpoints are not those the model version names.
    """
    model_version_id = model_version.model_version_id
    given = tuple(checkpoint.checkpoint_id for checkpoint in checkpoints)
    if run.run_id != model_version.run_id or given != model_version.checkpoint_ids or not checkpoints:
        raise DataError(
            f"Model version {model_version_id} names run {model_version.run_id} and checkpoints "
            f"{list(model_version.checkpoint_ids)}, but was given run {run.run_id} and checkpoints {list(given)}.",
            "Hand over its own run and its checkpoints in order of steps, at least one.",
        )
    unique = {checkpoint.checkpoint_id: checkpoint for checkpoint in checkpoints}
    return (
        rows_of(
            "model_version",
            [
                (
                    model_version_id,
                    model_version.name,
                    model_version.version,
                    model_version.run_id,
                    model_version.dataset_version_id,
                    model_version.adapter,
                    model_version.adapter_sha256,
                )
            ],
        ),
        rows_of(
            "model_version_checkpoint",
            (
                (
                    model_version_id,
                    position,
                    checkpoint.checkpoint_id,
                    checkpoint.step,
                    checkpoint.learning_rate,
                    checkpoint.source_uri,
                    checkpoint.weights_uri,
                )
                for position, checkpoint in enumerate(checkpoints)
            ),
        ),
        rows_of("training_run", [(run.run_id, run.experiment_id, run.name, run.started_at, run.parameters)]),
        rows_of(
            "checkpoint",
            ((each.checkpoint_id, each.format, each.byte_size, each.weights_sha256) for each in unique.values()),
        ),
    )


def index_rows(index: Index) -> Rows:
    """The row of an index."""
    coverage = index.coverage
    with _as_json("feature_config"):
        index_id = index.index_id
    return rows_of(
        "gradient_index",
        [
            (
                index_id,
                index.checkpoint_id,
                index.dataset_version_id,
                _json(index.feature_config, "feature_config"),
                coverage.covered_parameters,
                coverage.total_parameters,
                list(coverage.uncovered),
                coverage.indexed_examples,
                coverage.total_examples,
                coverage.quarantined,
                index.table_uri,
                index.table_version,
                index.rows_sha256,
            )
        ],
    )


def weighting_rows(weighting: Weighting) -> Rows:
    """The row of a weighting."""
    evidence = _json(weighting.evidence, "evidence")
    with _as_json("group_weights"):
        weighting_id = weighting.weighting_id
    return rows_of("weighting", [(weighting_id, weighting.objective, weighting.group_weights, evidence)])


def fidelity_rows(fidelities: Sequence[Fidelity]) -> Rows:
    """One row a measurement; its id is the digest of all it says."""
    rows = []
    for fidelity in fidelities:
        said = asdict(fidelity)
        with _as_json("fidelity"):
            fidelity_id = sha256_json(said)
        texts = {name: _json(said[name], name) for name in ("parameters", "evidence")}
        rows.append((fidelity_id, *(said | texts).values()))
    return rows_of("fidelity", rows)


def output_rows(outputs: Sequence[Output]) -> Rows:
    """One row an output."""
    for output in outputs:
        if output.produced_at.tzinfo is None:
            raise DataError(
                f"Output {output.output_id} was produced at {output.produced_at}, which has no time zone.",
                "Give times with a time zone; UTC is best.",
            )
    return rows_of("output", (tuple(asdict(output).values()) for output in outputs))


def quarantine_rows(source: str, record_id: str, cause: str) -> Rows:
    """The row of one refused record; its id is the digest of the three."""
    with _as_json("quarantine"):
        quarantine_id = sha256_json({"source": source, "record_id": record_id, "cause": cause})
    return rows_of("quarantine", [(quarantine_id, source, record_id, cause)])


def audit_rows(
    audit: Audit,
    *,
    method_notes: Mapping[str, Any],
    results: Sequence[OutputResult],
    attributions: Sequence[Attribution],
    shares: Sequence[Share],
    influences: Sequence[ExampleInfluence],
    findings: Sequence[Finding],
    group_contributions: Sequence[GroupContribution] = (),
) -> list[Rows]:
    """Rows of audit and of the eight tables that hang on it, audit first.

    Raises:
        DataError: also when the evidence does not fit the audit's outputs, a score's sign contradicts its side, or the
            contributions of groups do not add up to 1.
    """
    with _as_json("audit"):
        audit_id = audit.audit_id
    _refuse_strangers(audit, results, attributions, [*shares, *findings, *group_contributions])
    _refuse_partial_contributions(audit_id, group_contributions)
    by_output = {result.output_id: result for result in results}
    ordered_shares = sorted(shares, key=lambda each: (each.output_id or "", each.side, each.attribute, each.value))
    return [
        rows_of(
            "audit",
            [
                (
                    audit_id,
                    audit.model_version_id,
                    audit.method,
                    _json(audit.parameters, "parameters"),
                    audit.weighting_id,
                    audit.policy_sha256,
                    _json(method_notes, "method_notes"),
                )
            ],
        ),
        rows_of("audit_index", ((audit_id, position, each) for position, each in enumerate(audit.index_ids))),
        rows_of(
            "audit_output",
            (
                (
                    audit_id,
                    output_id,
                    position,
                    target,
                    by_output[output_id].prediction,
                    by_output[output_id].loss,
                    by_output[output_id].reproduced,
                    by_output[output_id].proponent_mass,
                    by_output[output_id].opponent_mass,
                )
                for position, (output_id, target) in enumerate(audit.outputs)
            ),
        ),
        rows_of(
            "attribution",
            ((audit_id, each.output_id, each.example_id, each.side, each.rank, each.score) for each in attributions),
        ),
        rows_of(
            "share",
            (
                (
                    audit_id,
                    position,
                    each.output_id,
                    each.side,
                    each.attribute,
                    each.value,
                    each.share,
                    each.training_share,
                    each.interval_low,
                    each.interval_high,
                )
                for position, each in enumerate(ordered_shares)
            ),
        ),
        rows_of(
            "example_influence",
            ((audit_id, each.side, each.example_id, each.rank, each.share) for each in influences),
        ),
        rows_of(
            "finding",
            (
                (
                    audit_id,
                    position,
                    each.rule,
                    each.severity,
                    each.message,
                    each.output_id,
                    _json(each.evidence, "evidence"),
                )
                for position, each in enumerate(findings)
            ),
        ),
        rows_of(
            "group_contribution",
            (
                (audit_id, position, each.output_id, each.side, each.group, each.share)
                for position, each in enumerate(group_contributions)
            ),
        ),
    ]


def _refuse_strangers(
    audit: Audit,
    results: Sequence[OutputResult],
    attributions: Sequence[Attribution],
    evidence: Sequence[Share | Finding | GroupContribution],
) -> None:
    expected = [output_id for output_id, _ in audit.outputs]
    if sorted(expected) != sorted(result.output_id for result in results) or not expected:
        raise DataError(
            f"Audit {audit.audit_id} has {len(expected)} outputs, and its results are not one for each of them.",
            "Score every output of the audit exactly once.",
        )
    known = set(expected)
    named = {each.output_id for each in attributions}
    named |= {each.output_id for each in evidence if each.output_id is not None}
    if strangers := sorted(named - known):
        raise DataError(
            f"Audit {audit.audit_id} was given evidence about output {strangers[0]}, which it does not examine.",
            "Hand over evidence about the audit's own outputs only.",
        )
    for each in attributions:
        if (each.score < 0) if each.side == "proponent" else (each.score > 0):
            raise DataError(
                f"Example {each.example_id} is a {each.side} of output {each.output_id} with score {each.score}.",
                "A proponent's score is positive, an opponent's negative.",
            )


def _refuse_partial_contributions(audit_id: str, contributions: Sequence[GroupContribution]) -> None:
    totals: dict[tuple[str | None, str], float] = {}
    for each in contributions:
        totals[each.output_id, each.side] = totals.get((each.output_id, each.side), 0.0) + each.share
    for (output_id, side), total in totals.items():
        if not isclose(total, 1.0, abs_tol=_CONTRIBUTION_TOLERANCE):
            raise DataError(
                f"The groups of audit {audit_id} contribute {total} of the {side}s' scores of "
                f"{output_id or 'all outputs'}, where all of them make 1.",
                "Hand over the contribution of every group of the index.",
            )


def _json(value: Mapping[str, Any], name: str) -> str:
    with _as_json(name):
        return canonical_json(dict(value)).decode()


@contextmanager
def _as_json(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise DataError(
            f"{name} cannot be written as JSON: {error}.", "Use text, finite numbers, lists and mappings."
        ) from error
