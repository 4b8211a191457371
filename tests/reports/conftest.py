"""A realistic audit report: real digits, made-up sources, awkward strings where users put them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from gradtrail.digests import sha256_bytes
from gradtrail.nouns import (
    Audit,
    Checkpoint,
    Coverage,
    DatasetVersion,
    ExampleInfluence,
    Fidelity,
    ModelVersion,
    Output,
    OutputResult,
    Preview,
    Run,
    Share,
    Weighting,
)
from gradtrail.reports.model import AuditReport, ExampleCard, LineageStep, OutputSection, Overall, Trust
from gradtrail.reports.policies.evaluation import evaluate
from gradtrail.reports.policies.facts import PolicyFacts, RankedExample
from gradtrail.reports.policies.file import load_policy

SCRIPT = "<script>alert(1)</script>"
LONG_ID = "s3://archive/" + "very-long-example-identifier/" * 6 + "scan_000017.png"
SOURCES = ("Hillside archive", "Riverbank survey", f"Web scrape {SCRIPT}")
LICENCES = ("CC-BY-4.0", "unlicensed")
EXAMPLES = 600
QUERIES = (1200, 1201, 1202, 1203)
WRONG_QUERY = 1202
SHOWN = 6
MADE = datetime(2026, 11, 21, 23, 8, tzinfo=UTC)


def digest_of(text: str) -> str:
    return sha256_bytes(text.encode())


def png_of(image: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray((255 - image / 16 * 255).astype(np.uint8)).save(stream, format="PNG")
    return stream.getvalue()


class SampleDigits:
    """Digits with attributes, and scores by likeness: like images of one label support, of another oppose."""

    def __init__(self) -> None:
        digits = load_digits()
        self.images, self.labels = digits.images, digits.target
        self.ids = [f"digits-{row:04d}" for row in range(EXAMPLES)]
        self.ids[17], self.ids[23] = LONG_ID, f"{SCRIPT}.png"
        generator = np.random.default_rng(3)
        self.source = generator.choice(3, EXAMPLES, p=[0.55, 0.35, 0.10])
        self.mislabelled = (self.source == 2) & (generator.random(EXAMPLES) < 0.3)
        self.label = np.where(self.mislabelled, (self.labels[:EXAMPLES] + 1) % 10, self.labels[:EXAMPLES])
        self.label_of_output = {query: int(self.labels[query]) for query in QUERIES}
        self.label_of_output[WRONG_QUERY] = (int(self.labels[WRONG_QUERY]) + 6) % 10

    def attributes(self, row: int) -> dict[str, str]:
        source = int(self.source[row])
        return {
            "source": SOURCES[source],
            "licence": LICENCES[int(source == 2)],
            "label": str(self.label[row]),
        }

    def scores(self, query: int) -> np.ndarray:
        flat = self.images.reshape(len(self.images), -1)
        flat = flat - flat.mean(axis=0)
        flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        likeness = np.maximum(flat[:EXAMPLES] @ flat[query], 0) ** 3
        same = self.label == self.label_of_output[query]
        return np.where(same, 1.0, -0.35) * likeness * np.where(self.mislabelled, 3.0, 1.0) * 0.04

    def shares(self, scores: np.ndarray, output_id: str | None, generator: np.random.Generator) -> list[Share]:
        shares = []
        for side, mass in (("proponent", np.maximum(scores, 0)), ("opponent", np.maximum(-scores, 0))):
            for attribute in ("source", "licence", "label"):
                values = np.array([self.attributes(row)[attribute] for row in range(EXAMPLES)])
                for value in sorted(set(values)):
                    chosen = values == value
                    shuffled = [mass[generator.permutation(chosen)].sum() / mass.sum() for _ in range(60)]
                    low, high = np.quantile(shuffled, [0.025, 0.975])
                    interval = (float(low), float(high)) if output_id is None else (None, None)
                    share = float(mass[chosen].sum() / mass.sum())
                    shares.append(Share(output_id, side, attribute, value, share, float(chosen.mean()), *interval))
        return shares

    def card(self, row: int, rank: int, side: str, score: float | None, share: float) -> ExampleCard:
        attributes = self.attributes(row)
        preview = Preview("image", png=png_of(self.images[row]))
        return ExampleCard(self.ids[row], digest_of(self.ids[row]), attributes, preview, score, rank, share, side)

    def cards(self, weights: np.ndarray, side: str, scored: bool) -> tuple[ExampleCard, ...]:
        mass = np.maximum(weights if side == "proponent" else -weights, 0)
        rows = np.argsort(-mass, kind="stable")[:SHOWN]
        return tuple(
            self.card(int(row), rank, side, float(weights[row]) if scored else None, float(mass[row] / mass.sum()))
            for rank, row in enumerate(rows, 1)
            if mass[row] > 0
        )


def _lineage(output: Output, proponents: tuple[ExampleCard, ...], checkpoint: Checkpoint) -> tuple[LineageStep, ...]:
    sources = sorted({(card.attributes["source"], card.attributes["licence"]) for card in proponents[:3]})
    return (
        LineageStep("output", output.output_id, "inbox record", None, f"payload {output.payload_sha256[:12]}"),
        *(LineageStep("example", card.example_id, f"Proponent {card.rank}") for card in proponents[:3]),
        *(LineageStep("source", source, source, None, licence) for source, licence in sources),
        LineageStep("dataset_version", digest_of("dataset"), "digits-train", None, "600 examples"),
        LineageStep("run", "0f3c5d7e9a1b4c2d8e6f7a8b9c0d1e2f", "calm-swan-412", "https://mlflow.example/#/run"),
        LineageStep("checkpoint", checkpoint.checkpoint_id, "step 900", "javascript:alert(1)", "safetensors"),
    )


@pytest.fixture(scope="session")
def report_facts_and_sample() -> tuple[PolicyFacts, AuditReport]:
    sample = SampleDigits()
    generator = np.random.default_rng(5)
    checkpoint_ids = tuple(digest_of(f"checkpoint {step}") for step in (300, 600, 900))
    model = ModelVersion(
        "digits-classifier", 3, "0f3c5d7e9a1b4c2d8e6f7a8b9c0d1e2f", digest_of("dataset"),
        "gradtrail.demo.adapter:DigitsAdapter", digest_of("adapter"), checkpoint_ids,
    )  # fmt: skip
    checkpoint = Checkpoint(
        checkpoint_ids[-1],
        900,
        0.05,
        "safetensors",
        "mlflow-artifacts:/model",
        "file:///model",
        checkpoint_ids[-1],
        40_872,
    )
    sections, all_shares, mean = [], [], np.zeros(EXAMPLES)
    for query in QUERIES:
        scores = sample.scores(query)
        positive, negative = np.maximum(scores, 0), np.maximum(-scores, 0)
        mean += (positive / positive.sum() - negative / negative.sum()) / len(QUERIES)
        output = Output(
            f"inbox:image-{query}",
            "inbox",
            f"image-{query}",
            MADE,
            "digits-classifier/3",
            digest_of(f"payload {query}"),
        )
        result = OutputResult(
            output.output_id, str(sample.label_of_output[query]), 0.0123 * (query - 1199), query != QUERIES[3],
            float(positive.sum()), float(negative.sum()),
        )  # fmt: skip
        proponents = sample.cards(scores, "proponent", scored=True)
        shares = tuple(sample.shares(scores, output.output_id, generator))
        all_shares.extend(shares)
        true_label = str(sample.labels[query]) if query != QUERIES[3] else None
        sections.append(
            OutputSection(
                output,
                result,
                Preview("image", png=png_of(sample.images[query])),
                true_label,
                proponents,
                sample.cards(scores, "opponent", scored=True),
                shares,
                (),
                _lineage(output, proponents, checkpoint),
                right=None if true_label is None else true_label == result.prediction,
            )
        )
    overall = Overall(
        tuple(sample.shares(mean, None, generator)),
        sample.cards(mean, "proponent", scored=False),
        sample.cards(mean, "opponent", scored=False),
    )
    coverage = Coverage(9_892, 10_218, ("norm1.weight", "norm1.bias"), 598, 600, {"digits-0431": "NaN in its gradient"})
    facts = PolicyFacts(
        results=tuple(section.result for section in sections),
        shares=(*overall.shares, *all_shares),
        proponents={
            section.output.output_id: tuple(
                RankedExample(card.example_id, card.rank, card.share or 0.0, card.attributes)
                for card in section.proponents
            )
            for section in sections
        },
        coverage=coverage,
        withdrawn_example_ids=frozenset({sections[0].proponents[0].example_id}),
        suspects=tuple(
            ExampleInfluence(card.example_id, "opponent", card.rank, card.share or 0.0) for card in overall.opponents
        ),
    )
    policy = load_policy(None)
    findings = tuple(evaluate(policy, facts))
    sections = [
        replace(section, findings=tuple(f for f in findings if f.output_id == section.output.output_id))
        for section in sections
    ]
    weighting = Weighting()
    report = AuditReport(
        audit=Audit(
            tuple((section.output.output_id, "emitted") for section in sections),
            "digits-classifier/3",
            (digest_of("index"),),
            "influence",
            {"damping_relative": 0.1, "curvature": "fisher", "seed": 0},
            weighting.weighting_id,
            policy.sha256,
        ),
        created_at=MADE,
        title="Audit of digits-classifier, version 3",
        model_version=model,
        model_links={
            "model version": "https://mlflow.example/#/models/digits-classifier/versions/3",
            "training run": "https://mlflow.example/#/experiments/1/runs/0f3c5d7e",
            "audit run": "javascript:alert(1)",
        },
        run=Run(model.run_id, "1", "calm-swan-412", MADE, {"learning_rate": "0.05", "epochs": "12", "note": SCRIPT}),
        checkpoint=checkpoint,
        dataset=DatasetVersion(digest_of("dataset"), "digits-train", 600, "file:///manifest.parquet"),
        attribute_counts={
            "source": {source: int((sample.source == place).sum()) for place, source in enumerate(SOURCES)},
            "licence": {"CC-BY-4.0": 540, "unlicensed": 60},
        },
        trust=Trust(
            fidelity=None,
            coverage=coverage,
            method="influence",
            method_description="Gradients compared through the inverse curvature of each layer.",
            method_source="arXiv 2405.13954",
            curvature_kind="fisher, targets sampled from the model",
            damping="0.1 × the mean curvature of each layer",
            weighting=weighting,
            meaning_of_scores="Scores are in units of loss: the estimated fall of the output’s loss per unit of weight "
            "given to the example.",
            left_out=("The two parameters of the normalisation layer have no gradient rule.",),
            quarantined_outputs={"inbox:image-1300": "the payload has 63 pixels and the model takes 64"},
            not_reproduced=(sections[3].output.output_id,),
        ),
        findings=findings,
        overall=overall,
        outputs=tuple(sections),
        ledger_head=digest_of("ledger"),
        preview_mode="full",
        gradtrail_version="0.1.0",
        measured_with={"torch": "2.9.1", "transformers": "4.57.3"},
        checks={"losses": 2e-7, "gradients": 3e-7, "rounding": 0.012},
    )
    return facts, report


@pytest.fixture(scope="session")
def sample_report(report_facts_and_sample: tuple[PolicyFacts, AuditReport]) -> AuditReport:
    return report_facts_and_sample[1]


@pytest.fixture(scope="session")
def sample_facts(report_facts_and_sample: tuple[PolicyFacts, AuditReport]) -> PolicyFacts:
    return report_facts_and_sample[0]


@pytest.fixture(scope="session")
def measured_fidelity(sample_report: AuditReport) -> Callable[..., Fidelity]:
    def fidelity(**changes: Any) -> Fidelity:
        measured = Fidelity(
            sample_report.checkpoint.checkpoint_id, "influence", sample_report.trust.weighting.weighting_id,
            "fidelity_subset", 0.826, 0.021, 0.943, 32,
        )  # fmt: skip
        return replace(measured, **changes)

    return fidelity


@pytest.fixture(scope="session")
def script_text() -> str:
    return SCRIPT


@pytest.fixture(scope="session")
def long_example_id() -> str:
    return LONG_ID
