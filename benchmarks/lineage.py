"""The ledger at size: how fast it takes audits in, and how long its questions take, as it grows.

Everything goes through the ledger's own writers, one short transaction each, with every digest, commitment and event
that a real audit has. Ids, scores and attributes are made up; their number and shape are not.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import RESULTS, environment, write_results

from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.read import queries
from gradtrail.lineage.read.reach import blast_radius
from gradtrail.nouns import (
    Attribution,
    Audit,
    Checkpoint,
    Coverage,
    DatasetVersion,
    ExampleInfluence,
    Index,
    ManifestRow,
    ModelVersion,
    Output,
    OutputResult,
    Run,
    Share,
    Side,
    Weighting,
)

OUTPUTS_AN_AUDIT = 10
ATTRIBUTIONS_AN_OUTPUT = 1000
SOURCES = 10
LICENCES = ("CC-BY-4.0", "MIT", "unknown")
START = datetime(2026, 1, 1, tzinfo=UTC)
WANTED = {"explain": 50.0, "upstream": 200.0, "blast_radius": 1000.0}
"""Milliseconds, at most."""


def digest(*parts: object) -> str:
    """An id that looks like a real one."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class Story:
    """Model versions that were trained on one large dataset version, each with an audit of ten outputs."""

    def __init__(self, ledger: Ledger, example_count: int) -> None:
        self.ledger = ledger
        self.example_ids = [f"train-{number:07d}" for number in range(example_count)]
        self.dataset = DatasetVersion(digest("dataset"), "web", example_count, "file:///manifest.parquet")
        self.weighting = Weighting()
        self.random = np.random.default_rng(0)

    def manifest(self) -> Iterator[ManifestRow]:
        """The examples, their sources taking turns."""
        for number, example_id in enumerate(self.example_ids):
            attributes = {"source": f"source-{number % SOURCES}", "licence": LICENCES[number % len(LICENCES)]}
            yield ManifestRow(example_id, digest("content", number), attributes)

    def begin(self) -> None:
        """The dataset version and the weighting."""
        self.ledger.record_dataset_version(self.dataset, self.manifest())
        self.ledger.record_weighting(self.weighting)

    def models(self, number: int) -> None:
        """One model version with its run, checkpoint and index, and ten outputs that it produced."""
        dataset_id, checkpoint_id = self.dataset.dataset_version_id, digest("checkpoint", number)
        run = Run(digest("run", number)[:32], "0", f"training {number}", START, {"epochs": "3"})
        model_version = ModelVersion(
            "model", number, run.run_id, dataset_id, "adapters:Text", digest("adapter"), (checkpoint_id,)
        )
        self.ledger.record_model_version(
            model_version,
            run,
            [Checkpoint(checkpoint_id, 1000, 0.01, "safetensors", "mlflow:/x", "file:///x", checkpoint_id, 1 << 30)],
        )
        self.ledger.record_index(self.index(number))
        self.ledger.record_outputs(
            [
                Output(
                    f"inbox:{output_id}", "inbox", output_id, START + timedelta(minutes=number), f"model/{number}",
                    digest("payload", output_id),
                )
                for output_id in self.record_ids(number)
            ]
        )  # fmt: skip

    def index(self, number: int) -> Index:
        """The gradient index of a model version."""
        count = len(self.example_ids)
        return Index(
            digest("checkpoint", number), self.dataset.dataset_version_id, {"dimension": 4096, "seed": 0},
            Coverage(100, 100, (), count, count), "lance://table", 1, digest("rows", number),
        )  # fmt: skip

    @staticmethod
    def record_ids(number: int) -> list[str]:
        """Ids of outputs at their source; in no order, as those of requests are."""
        return [digest("output", number, place)[:16] for place in range(OUTPUTS_AN_AUDIT)]

    def audit(self, number: int) -> int:
        """Record one audit; returns the number of its attributions."""
        output_ids = [f"inbox:{record_id}" for record_id in self.record_ids(number)]
        half = ATTRIBUTIONS_AN_OUTPUT // 2
        sides: tuple[tuple[Side, float], ...] = (("proponent", 1.0), ("opponent", -1.0))
        attributions = []
        for output_id in output_ids:
            chosen = self.random.choice(len(self.example_ids), ATTRIBUTIONS_AN_OUTPUT, replace=False).tolist()
            scores = np.sort(self.random.exponential(size=(2, half)), axis=1)[:, ::-1].tolist()
            for place, (side, sign) in enumerate(sides):
                attributions += [
                    Attribution(output_id, self.example_ids[example], side, rank, sign * score)
                    for rank, (example, score) in enumerate(
                        zip(chosen[place * half :][:half], scores[place], strict=True), start=1
                    )
                ]
        concerned: list[str | None] = [None, *output_ids]
        shares = [
            Share(output_id, side, "source", f"source-{source}", 1 / SOURCES, 1 / SOURCES)
            for output_id in concerned
            for side, _ in sides
            for source in range(SOURCES)
        ]
        influential = self.random.choice(len(self.example_ids), 100, replace=False).tolist()
        influences = [
            ExampleInfluence(self.example_ids[example], sides[place % 2][0], 1 + place // 2, 0.01)
            for place, example in enumerate(influential)
        ]
        self.ledger.record_audit(
            Audit(
                tuple((output_id, "emitted") for output_id in output_ids), f"model/{number}",
                (self.index(number).index_id,), "influence", {"top_k": half}, self.weighting.weighting_id, digest("p"),
            ),
            method_notes={"meaning_of_scores": "loss"},
            results=[OutputResult(output_id, "a sentence", 0.5, True, 1e4, -1e4) for output_id in output_ids],
            attributions=attributions,
            shares=shares,
            influences=influences,
            findings=[],
        )  # fmt: skip
        return len(attributions)


def asked(ledger: Ledger, audits: int, repetitions: int) -> dict[str, Any]:
    """Questions on the published snapshot, over a connection that is open already: median wall and CPU milliseconds."""
    picked = np.linspace(0, audits - 1, repetitions).astype(int).tolist()
    output_ids = [f"inbox:{Story.record_ids(number)[3]}" for number in picked]
    sources = [f"source-{place % SOURCES}" for place in range(repetitions)]
    with closing(ledger.read_snapshot()) as connection:
        found = queries.explain(connection, output_ids[0])
        assert len(found.proponents) + len(found.opponents) == ATTRIBUTIONS_AN_OUTPUT
        reached = queries.upstream(connection, output_ids[0])
        assert {"checkpoint", "run", "dataset_version", "source", "licence"} <= {node.kind for node in reached}
        touched = blast_radius(connection, "source", sources[:1])
        assert len(touched.ids("output")) == audits * OUTPUTS_AN_AUDIT
        return {
            **_timed("explain", output_ids, lambda each: queries.explain(connection, each)),
            **_timed("upstream", output_ids, lambda each: queries.upstream(connection, each)),
            **_timed("blast_radius", sources, lambda each: blast_radius(connection, "source", [each])),
            "upstream_nodes": len(reached),
            "blast_radius_examples": touched.examples,
            "blast_radius_outputs": len(touched.ids("output")),
        }


def _timed(name: str, arguments: list[str], ask: Callable[[str], object]) -> dict[str, float]:
    walls, processor = [], []
    for argument in arguments:
        wall, busy = time.perf_counter(), time.process_time()
        ask(argument)
        walls.append(time.perf_counter() - wall)
        processor.append(time.process_time() - busy)
    return {
        f"{name}_ms": round(1000 * median(walls), 1),
        f"{name}_fastest_ms": round(1000 * min(walls), 1),
        f"{name}_cpu_ms": round(1000 * median(processor), 1),
    }


def grow(folder: Path, sizes: list[int], example_count: int, repetitions: int) -> Iterator[dict[str, Any]]:
    """One row a size, in audits: what it took to get there from the size before, and what questions take there."""
    ledger = Ledger(folder / "ledger.duckdb", folder / "snapshot.duckdb")
    story = Story(ledger, example_count)
    wall = time.perf_counter()
    story.begin()
    examples_a_second = example_count / (time.perf_counter() - wall)
    done = attributions = 0
    for size in sizes:
        taken = seconds = busy = 0.0
        for number in range(done, size):
            story.models(number)
            wall, processor = time.perf_counter(), time.process_time()
            taken += story.audit(number)
            seconds += time.perf_counter() - wall
            busy += time.process_time() - processor
        done, attributions = size, attributions + int(taken)
        wall = time.perf_counter()
        ledger.publish_snapshot()
        published = time.perf_counter() - wall
        yield {
            "model": f"{attributions:,} attributions",
            "engine": "gradtrail",
            "attributions": attributions,
            "examples": example_count,
            "outputs": done * OUTPUTS_AN_AUDIT,
            "model_versions": done,
            "audits": done,
            "examples_per_second": round(examples_a_second),
            "attributions_per_second": round(taken / seconds),
            "attributions_per_cpu_second": round(taken / busy),
            "publish_seconds": round(published, 2),
            "bytes": ledger.paths.database.stat().st_size,
            "load": round(os.getloadavg()[0], 2),
            **asked(ledger, done, repetitions),
        }


def _line(row: dict[str, Any]) -> str:
    asked_for = ", ".join(f"{name} {row[f'{name}_ms']:.0f} ms ({row[f'{name}_cpu_ms']:.0f} CPU)" for name in WANTED)
    return (
        f"{row['attributions']:>10,} attributions: {row['attributions_per_second']:,}/s, {asked_for}; "
        f"published in {row['publish_seconds']} s, {row['bytes'] / 1e9:.2f} GB; load {row['load']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a small ledger, to see that everything runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the ledger is built; a temporary folder by default")
    parser.add_argument("--output", type=Path, default=RESULTS / "lineage.json")
    options = parser.parse_args()
    described = environment(options.threads, ["duckdb", "pyarrow", "numpy"], wanted_ms=WANTED)
    sizes, examples = ([1, 3], 2000) if options.tiny else ([100, 300, 1000], 1_000_000)
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for row in grow(Path(folder), sizes, examples, options.repetitions):
            rows.append(row)
            print(_line(row), flush=True)
            write_results(options.output, described, rows)


if __name__ == "__main__":
    main()
