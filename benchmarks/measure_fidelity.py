"""The evidence for measured trust and learned weights: truths, our scores, peers', and how well each predicts.

Truths are kept under .cache/fidelity and resumed; what they take is printed first. Every method is tuned (damping,
curvature, horizon) on selection queries, peers on the same; figures are of other queries.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fidelity.candidates import Candidate
from fidelity.judgement import questions
from fidelity.ours import OurScores
from fidelity.peers import ONLY, peer_scores
from fidelity.rows import BASELINES, Judged
from fidelity.tasks import tasks
from fidelity.truths import CACHE, KINDS, Truths
from machine import RESULTS, environment, start_again_under_conditions, write_results
from peer_environment import PEERS

from gradtrail.attribution.scoring.batches import ScoringPass
from gradtrail.attribution.yardsticks.baselines import lexical_pass, neighbour_pass, random_pass

LONGEST_FIRST = ("language", "cancer", "digits", "diabetes")
"""To judge, so that no core waits long at the end."""
LONG_PEERS = (("digits", "dattri"), ("cancer", "dattri"), ("cancer", "traker"), ("language", "kronfluence"))
"""The same among peers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="seconds instead of an hour; measures next to nothing")
    parser.add_argument(
        "--tasks", nargs="*", default=list(tasks()), help="rows of other tasks stay as they are in the results"
    )
    parser.add_argument("--only-truths", action="store_true", help="train, and judge nothing yet")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--workers", type=int, default=2, help="processes that train at once, one thread each")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--output", type=Path, default=RESULTS / "fidelity.json")
    options = parser.parse_args()
    start_again_under_conditions(1)
    described = environment(1, ["torch", "numpy", "scikit-learn", "transformers"], processes=options.workers)
    began = time.perf_counter()
    measure_truths(options.tasks, toy=options.toy, cache=options.cache, workers=options.workers)
    if options.only_truths:
        return
    names = [] if options.no_peers else list(PEERS)
    if names:
        score_peers(options.tasks, names, toy=options.toy, cache=options.cache, workers=options.workers)
    order = [name for name in LONGEST_FIRST if name in options.tasks]
    results = list(_each(judge_task, [(name, options.toy, options.cache, names) for name in order], options.workers))
    for name, result in zip(order, results, strict=True):
        result["described"]["unavailable"] = result.pop("unavailable")
        described.setdefault("tasks", {})[name] = result["described"]
    described["seconds"] = round(time.perf_counter() - began)
    print(f"Everything: {described['seconds'] / 60:.1f} minutes", flush=True)
    for part, suffix in (("rows", ""), ("comparisons", "-comparisons"), ("sweep", "-sweep")):
        _write(options.output, suffix, described, [row for result in results for row in result[part]])


def _write(output: Path, suffix: str, described: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """One file of the results, in which tasks that were not measured now stay."""
    path = output.with_stem(output.stem + suffix)
    earlier = json.loads(path.read_text()) if path.is_file() else {"environment": {"tasks": {}}, "rows": []}
    kept = [row for row in earlier["rows"] if row["task"] not in described["tasks"]]
    every = {**earlier["environment"]["tasks"], **described["tasks"]}
    order = [name for name in tasks() if name in every]
    together = sorted([*kept, *_rounded(rows)], key=lambda row: order.index(row["task"]))
    write_results(path, {**described, "tasks": {name: every[name] for name in order}}, together)


def _rounded(value: Any) -> Any:
    """Numbers to five digits: what comes after is neither exact nor read."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


def measure_truths(names: Sequence[str], *, toy: bool, cache: Path, workers: int) -> None:
    """Every run of training that is not in its file, several at once; says beforehand what that takes."""
    total, jobs = 0.0, []
    for name in names:
        truths = Truths(tasks(toy=toy)[name], cache)
        seconds = truths.seconds()
        said = ", ".join(f"{kind} {truths.missing(kind)} runs ({seconds[kind]:.0f} s)" for kind in KINDS)
        print(f"{name}: {said}", flush=True)
        total += sum(seconds.values())
        jobs += [(seconds[kind], name, kind) for kind in KINDS if truths.missing(kind)]
    print(f"Training: about {total / 60:.1f} core minutes, {total / 60 / workers:.1f} on {workers} cores.", flush=True)
    jobs.sort(reverse=True)
    for name, kind, taken in _each(_measure, [(name, kind, toy, cache) for _, name, kind in jobs], workers):
        print(f"measured: {name} {kind} {taken:.0f} s", flush=True)


def score_peers(names: Sequence[str], peers: Sequence[str], *, toy: bool, cache: Path, workers: int) -> None:
    """Every peer on every task that is not in its file, several at once."""
    able = {peer: ONLY[peer][0] if peer in ONLY else LONGEST_FIRST for peer in peers}
    pairs = [(task, peer) for task in LONGEST_FIRST for peer in peers if task in names and task in able[peer]]
    pairs.sort(key=lambda pair: LONG_PEERS.index(pair) if pair in LONG_PEERS else len(LONG_PEERS))
    for said in _each(_score_peer, [(task, peer, toy, cache) for task, peer in pairs], workers):
        print(said, flush=True)


def judge_task(job: tuple[str, bool, Path, list[str]]) -> dict[str, Any]:
    """Rows, comparisons and sweep of one task."""
    name, toy, cache, peers = job
    torch.set_num_threads(1)
    began = time.perf_counter()
    truths = Truths(tasks(toy=toy)[name], cache)
    ours, asked, parts = OurScores(truths), questions(truths), truths.task.data.parts
    judged = Judged(name, asked, parts)
    spent: dict[str, float] = defaultdict(float)
    judged.add(_timed(ours.candidates(), spent))
    judged.add(baselines(truths))
    after_ours = time.perf_counter()
    found = peer_scores(truths, ours.dampings(), peers, threads=1)
    judged.add(found.candidates)
    longest = sorted(spent.items(), key=lambda item: -item[1])
    parts_of_it = ", ".join(f"{method} {seconds:.0f} s" for method, seconds in longest)
    print(f"{name}: ours {after_ours - began:.0f} s ({parts_of_it}), ", end="")
    print(f"peers' scores {time.perf_counter() - after_ours:.0f} s", flush=True)
    return {
        "rows": judged.rows(),
        "sweep": judged.sweep,
        "unavailable": found.unavailable,
        "comparisons": [*_verdicts(judged), *_gains(judged)],
        "described": {**_described(truths, ours), "seconds": round(time.perf_counter() - began)},
    }


def _timed(candidates: Iterator[Candidate], spent: dict[str, float]) -> Iterator[Candidate]:
    """The same; adds to `spent` what making and judging those of each method took."""
    began = time.perf_counter()
    for candidate in candidates:
        yield candidate
        now = time.perf_counter()
        spent[candidate.method] += now - began
        began = now


def baselines(truths: Truths) -> Iterator[Candidate]:
    """What a user already has."""
    task, data = truths.task, truths.task.data
    passes: dict[str, ScoringPass] = {
        "random": random_pass(data.training, len(data.queries)),
        "nearest neighbours": neighbour_pass(task.adapter, truths.model, data.training, data.queries),
    }
    if task.name == "language":
        passes["BM25"] = lexical_pass(task.adapter, data.training, data.queries)
    for name, scoring in passes.items():
        scores = np.concatenate([values for _, values in scoring.batches()], axis=1)
        yield Candidate(BASELINES, name, torch.from_numpy(scores).unsqueeze(2))


def _verdicts(judged: Judged) -> Iterator[dict[str, Any]]:
    for place, question in enumerate(judged.asked):
        ours, theirs = judged.best(place, ours=True), judged.best(place, ours=False)
        comparison = judged.comparison(place)
        if ours is None or theirs is None or comparison is None:
            continue
        yield {
            "compared": "best of ours against best peer",
            "task": judged.task,
            "metric": question.metric,
            "steps": question.steps,
            "ours": f"{ours.prediction.candidate.method}, {ours.prediction.weighting_name}",
            "ours_value": float(ours.ranks.mean()),
            "peer": f"{theirs.prediction.candidate.engine} {theirs.prediction.candidate.method}",
            "peer_value": float(theirs.ranks.mean()),
            "ceiling": judged.ceiling(place),
            **asdict(comparison),
            "verdict": comparison.verdict,
        }


def _gains(judged: Judged) -> Iterator[dict[str, Any]]:
    """Learned weights against uniform ones, for every method."""
    for place, engine, method, weighting in sorted(judged.chosen):
        gain = judged.gain(place, method, weighting)
        if engine == "gradtrail" and weighting != "uniform" and gain is not None:
            question = judged.asked[place]
            yield {
                "compared": "learned weights against uniform",
                "task": judged.task,
                "metric": question.metric,
                "steps": question.steps,
                "method": method,
                "weighting": weighting,
                "difference": gain.difference,
                "standard_error": gain.standard_error,
                "verdict": gain.verdict,
            }


def _described(truths: Truths, ours: OurScores) -> dict[str, Any]:
    task = truths.task
    return {
        "title": task.title,
        "parameters": sum(parameter.numel() for parameter in truths.model.parameters()),
        "covered_parameters": ours.exact.plan.covered_parameters,
        "groups": [group.name for group in ours.exact.plan.groups],
        "amounts": asdict(task.amounts),
        "training": asdict(task.fitting),
        "further_training": {"steps": list(task.steps), "learning_rate": task.rate, "batch_size": task.batch_size},
        "largest_eigenvalue": ours.largest,
    }


def _measure(job: tuple[str, str, bool, Path]) -> tuple[str, str, float]:
    name, kind, toy, cache = job
    torch.set_num_threads(1)
    began = time.perf_counter()
    Truths(tasks(toy=toy)[name], cache).measure(kind)
    return name, kind, time.perf_counter() - began


def _score_peer(job: tuple[str, str, bool, Path]) -> str:
    name, peer, toy, cache = job
    torch.set_num_threads(1)
    truths = Truths(tasks(toy=toy)[name], cache)
    began = time.perf_counter()
    found = peer_scores(truths, OurScores(truths).dampings(), [peer], threads=1)
    return f"{name}: {PEERS[peer]} {time.perf_counter() - began:.0f} s, {len(found.candidates)} candidates"


def _each(action: Any, jobs: Sequence[Any], workers: int) -> Iterator[Any]:
    """In order, on several processes if asked."""
    if workers == 1 or len(jobs) < 2:
        yield from map(action, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(action, jobs)


if __name__ == "__main__":
    main()
