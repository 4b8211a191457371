"""Race of indexing: examples per second from training data to stored gradients, ours against peers and two yardsticks.

Every engine runs the same model on the same data with the same number of threads. Engines take turns, and the median of
each engine's turns counts. A turn is a pass that is not timed, and right after it as many as take two seconds, of which
the median counts: a virtual machine takes freed memory away within seconds, and to get it back costs several times what
writing a file does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from engines import GROUP_DIMENSION, ceiling, gradtrail_features, gradtrail_index, norms_and_embeddings, training_step
from line_process import LineProcess, run_side_by_side
from machine import RESULTS, conditions, environment, start_again_under_conditions, write_results
from peer_environment import PEERS, Peer
from workloads import Workload, workloads

from gradtrail.attribution.layers.forward_overrides import fast_affine_layers
from gradtrail.attribution.numerics.products import has_faster_products

CEILING, TRAINING = "ceiling: forward and input backward, weights frozen", "training step: forward, backward, AdamW"
FASTER_CEILING = "ceiling, products by oneDNN"
AGAIN = ("bergson", "dattri")
"""Peers that run once more with torch told to multiply by oneDNN, as gradtrail's layers do, and once more in several
processes with a part of the examples each, as gradtrail's workers."""
Pass = Callable[[], tuple[float, int]]


@dataclass
class Runner:
    """One engine: how to run a pass, what it covers, and the seconds a pass in each of its turns."""

    engine: str
    run: Pass
    covers: str
    close: Callable[[], object] = lambda: None
    seconds: list[float] = field(default_factory=list)
    examples: int = 0

    def measure(self, turn: float) -> None:
        self.run()
        passes: list[float] = []
        while not passes or sum(passes) < turn:
            seconds, self.examples = self.run()
            passes.append(seconds)
        self.seconds.append(median(passes))

    @property
    def examples_per_second(self) -> float:
        return self.examples / median(self.seconds)


def race(
    workload: Workload, peers: list[str], *, tiny: bool, threads: int, repetitions: int, turn: float, budget: float
) -> list[dict[str, Any]]:
    """The rows of one workload. An engine is asked again while that keeps it within `budget` seconds.

    A peer has run once when it says that it is ready.
    """
    runners, refused = _own_runners(workload), []
    for name in peers:
        peer = Peer(name, workload.name, tiny=tiny, threads=threads, by_one_dnn=False, environment=conditions(threads))
        if peer.unavailable is None:
            runners.append(Runner(PEERS[name], peer.run, peer.covers, peer.close))
        else:
            refused.append({"model": workload.name, "engine": PEERS[name], "unavailable": peer.unavailable})
            peer.close()
    able = [name for name in AGAIN if PEERS[name] in {runner.engine for runner in runners}]
    if has_faster_products():
        runners += [_told(name, workload, tiny=tiny, threads=threads) for name in able]
    if threads > 1:
        runners.append(_workers(workload, tiny=tiny, count=threads))
        runners += [_by_hand(name, workload, tiny=tiny, count=threads) for name in able]
    for _ in range(repetitions):
        for runner in runners:
            if not runner.seconds or sum(runner.seconds) + runner.seconds[-1] <= budget:
                runner.measure(turn)
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
    if has_faster_products() and fast_affine_layers(model, "cpu"):
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


def _told(name: str, workload: Workload, *, tiny: bool, threads: int) -> Runner:
    peer = Peer(name, workload.name, tiny=tiny, threads=threads, by_one_dnn=True, environment=conditions(threads))
    return Runner(f"{PEERS[name]}, torch told to use oneDNN", peer.run, peer.covers, peer.close)


def _by_hand(name: str, workload: Workload, *, tiny: bool, count: int) -> Runner:
    peers = [
        Peer(name, workload.name, tiny=tiny, threads=1, by_one_dnn=False, environment=conditions(1), share=count)
        for _ in range(count)
    ]
    return Runner(
        f"{PEERS[name]}, {count} processes by hand",
        lambda: run_side_by_side(peers),
        f"{peers[0].covers}; each a part of the examples, on 1 thread",
        lambda: [peer.close() for peer in peers],
    )


def _workers(workload: Workload, *, tiny: bool, count: int) -> Runner:
    size = "tiny" if tiny else "full"
    script = Path(__file__).with_name("index_worker.py")
    workers = [
        LineProcess([sys.executable, script, workload.name, size, 1, f"{number}/{count}"], conditions(1))
        for number in range(1, count + 1)
    ]
    for worker in workers:
        worker.answer()

    def run() -> tuple[float, int]:
        with tempfile.TemporaryDirectory() as folder:
            return run_side_by_side(workers, folder)

    covers = "every parameter; written to one LanceDB table; each a part of the examples, on 1 thread"
    return Runner(f"gradtrail, {count} workers", run, covers, lambda: [worker.close() for worker in workers])


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
    parser.add_argument("--turn", type=float, default=2.0, help="seconds that passes of an engine take in a row")
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
            turn=options.turn,
            budget=options.budget,
        )
        for row in found:
            figures = row.get("unavailable") or f"{row['examples_per_second']:>10.1f}/s {row['ratio_to_ceiling']:.3f}"
            print(f"{row['model']:4} {row['engine']:52} {figures}", flush=True)
        rows += found
    write_results(options.output, described, rows)


if __name__ == "__main__":
    main()
