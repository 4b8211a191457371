"""Race of indexing: examples per second from training data to stored gradients, ours against peers and two yardsticks.

Every engine runs the same model on the same data with the same number of threads. After one pass to warm up, passes of
all engines take turns, and the median of each engine's passes counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from engines import GROUP_DIMENSION, ceiling, gradtrail_features, gradtrail_index, norms_and_embeddings, training_step
from machine import RESULTS, conditions, environment, start_again_under_conditions, write_results
from peer_environment import PEERS, Peer
from workloads import Workload, workloads

from gradtrail.attribution.products import has_faster_products
from gradtrail.attribution.stand_ins import affine_layers

CEILING, TRAINING = "ceiling: forward and input backward, weights frozen", "training step: forward, backward, AdamW"
FASTER_CEILING = "ceiling, products by oneDNN"
TOLD_TOO = ("bergson", "dattri")
"""Peers that run once more with torch told to multiply by oneDNN, as gradtrail's layers do."""
Pass = Callable[[], tuple[float, int]]


@dataclass
class Runner:
    """One engine: how to run a pass, what it covers, and the seconds of its passes."""

    engine: str
    run: Pass
    covers: str
    close: Callable[[], None] = lambda: None
    seconds: list[float] = field(default_factory=list)
    examples: int = 0

    def measure(self) -> None:
        seconds, self.examples = self.run()
        self.seconds.append(seconds)

    @property
    def examples_per_second(self) -> float:
        return self.examples / median(self.seconds)


def race(
    workload: Workload, peers: list[str], *, tiny: bool, threads: int, repetitions: int, budget: float
) -> list[dict[str, Any]]:
    """The rows of one workload. An engine is asked again while that keeps it within `budget` seconds.

    A peer has run once when it says that it is ready.
    """
    own = _own_runners(workload)
    runners, refused = list(own), []
    told = [name for name in peers if name in TOLD_TOO and has_faster_products()]
    for name, by_one_dnn in [*((name, False) for name in peers), *((name, True) for name in told)]:
        peer = Peer(
            name,
            workload.name,
            tiny=tiny,
            threads=threads,
            by_one_dnn=by_one_dnn,
            environment=conditions(threads),
        )
        if peer.unavailable is None:
            engine = f"{PEERS[name]}, torch told to use oneDNN" if by_one_dnn else PEERS[name]
            runners.append(Runner(engine, peer.run, peer.covers, peer.close))
        elif by_one_dnn:
            peer.close()
        else:
            refused.append({"model": workload.name, "engine": PEERS[name], "unavailable": peer.unavailable})
            peer.close()
    for runner in own:
        runner.run()
    for _ in range(repetitions):
        for runner in runners:
            if not runner.seconds or sum(runner.seconds) + runner.seconds[-1] <= budget:
                runner.measure()
    for runner in runners:
        runner.close()
    return [_row(workload, runner, runners) for runner in runners] + refused


def _own_runners(workload: Workload) -> list[Runner]:
    model = workload.build()
    beyond_peers = norms_and_embeddings(model)
    runners = [
        Runner(CEILING, _timed(workload, ceiling(workload)), ""),
        Runner(TRAINING, _timed(workload, training_step(workload)), ""),
        Runner("gradtrail", _timed(workload, gradtrail_index(workload)), "every parameter; written to LanceDB"),
    ]
    if has_faster_products() and affine_layers(model, "cpu"):
        runners.insert(1, Runner(FASTER_CEILING, _timed(workload, ceiling(workload, faster=True)), ""))
    if beyond_peers:
        fewer = gradtrail_index(workload, beyond_peers)
        runners.append(
            Runner("gradtrail, linear layers only", _timed(workload, fewer), "linear layers; written to LanceDB")
        )
    sealed = gradtrail_index(workload, seal=True)
    covers = "every parameter; examples compared with their manifest, LanceDB table read back and sealed"
    held = gradtrail_features(workload)
    runners.append(Runner("gradtrail, kept in memory", _timed(workload, held), "every parameter; not written"))
    return [*runners, Runner("gradtrail, checked and sealed", _timed(workload, sealed), covers)]


def _timed(workload: Workload, run: Callable[[], None]) -> Pass:
    def timed() -> tuple[float, int]:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin, workload.examples

    return timed


def _row(workload: Workload, runner: Runner, runners: list[Runner]) -> dict[str, Any]:
    rates = {other.engine: other.examples_per_second for other in runners}
    rate = runner.examples_per_second
    return {
        "model": workload.name,
        "engine": runner.engine,
        "examples_per_second": round(rate, 2),
        "ratio_to_ceiling": round(rate / rates[CEILING], 3),
        "ratio_to_training_step": round(rate / rates[TRAINING], 3),
        "ratio_of_gradtrail_to_it": round(rates["gradtrail"] / rate, 3),
        "covers": runner.covers,
        "examples": runner.examples,
        "batch_size": min(workload.batch_size, runner.examples),
        "seconds": [round(seconds, 4) for seconds in runner.seconds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small models, to see that everything runs")
    parser.add_argument("--no-peers", action="store_true", help="only gradtrail and the yardsticks")
    parser.add_argument("--models", nargs="+", default=["gpt", "cnn", "mlp"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--budget", type=float, default=40.0, help="seconds an engine may take on one model")
    parser.add_argument("--output", type=Path, default=RESULTS / "index.json")
    options = parser.parse_args()
    start_again_under_conditions(options.threads)

    described = environment(
        options.threads,
        ["torch", "lancedb", "pyarrow", "numpy"],
        group_dimension=GROUP_DIMENSION,
        has_faster_products=has_faster_products(),
        parameters={
            name: sum(parameter.numel() for parameter in workload.build().parameters())
            for name, workload in workloads(options.tiny).items()
        },
    )
    rows = []
    for name in options.models:
        found = race(
            workloads(options.tiny)[name],
            [] if options.no_peers else list(PEERS),
            tiny=options.tiny,
            threads=options.threads,
            repetitions=options.repetitions,
            budget=options.budget,
        )
        for row in found:
            figures = row.get("unavailable") or f"{row['examples_per_second']:>10.1f}/s {row['ratio_to_ceiling']:.3f}"
            print(f"{row['model']:4} {row['engine']:52} {figures}", flush=True)
        rows += found
    write_results(options.output, described, rows)


if __name__ == "__main__":
    main()
