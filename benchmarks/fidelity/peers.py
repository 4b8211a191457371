"""Peers' scores of the same checkpoint, examples and queries, each computed in a process of the peers' environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import ROOT, conditions
from peer_environment import PEERS, peer_python
from safetensors.torch import load_file, save_file

from fidelity.candidates import Candidate
from fidelity.truths import Truths
from gradtrail.digests import sha256_file, sha256_json, short
from gradtrail.nouns import Example
from gradtrail.storage.files.atomic import write_atomically

SCRIPTS = ROOT / "benchmarks" / "peers"
ONLY = {
    "bergson": (("language",), "it reads language models"),
    "traker": (("cancer", "digits"), "TRAK is about the margin of a class"),
}
"""Peers that have a way to do some tasks only, and why."""
MOST_SECONDS = 600
"""A peer that takes longer on one task is stopped; what it had finished counts, and the results say so."""


@dataclass(frozen=True)
class PeerScores:
    """Candidates of all peers, and why others have none, by engine and method."""

    candidates: tuple[Candidate, ...]
    unavailable: dict[str, str]


def peer_scores(truths: Truths, dampings: Sequence[float], names: Sequence[str], threads: int) -> PeerScores:
    """Scores of the peers called `names`; those that were computed before are read from their files."""
    candidates: list[Candidate] = []
    unavailable: dict[str, str] = {}
    for name in names:
        engine = PEERS[name]
        doable, why = ONLY.get(name, ((truths.task.name,), ""))
        if truths.task.name not in doable:
            unavailable[engine] = why
            continue
        folder = _scored(truths, dampings, name, threads)
        if reason := (folder / "ended.txt").read_text():
            unavailable[engine] = reason
        if not (folder / "scores.json").is_file():
            continue
        said = json.loads((folder / "scores.json").read_text())
        scores = load_file(folder / "scores.safetensors")
        unavailable |= {f"{engine} {method}": reason for method, reason in said["unavailable"].items()}
        for place, one in enumerate(said["scores"]):
            values = scores[str(place)].double().unsqueeze(2)
            candidates.append(Candidate(engine, one["method"], values, one["parameters"], one["damping"]))
    return PeerScores(tuple(candidates), unavailable)


def _scored(truths: Truths, dampings: Sequence[float], name: str, threads: int) -> Path:
    """The folder with a peer's scores, computed now where they are missing."""
    script = SCRIPTS / f"judge_{name}.py"
    # The last digits of an eigenvalue are not the same in every run.
    made_of = [sha256_file(script), sha256_file(SCRIPTS / "judged.py"), [f"{damping:.4g}" for damping in dampings]]
    folder = truths.folder / "peers" / f"{name}-{short(sha256_json(made_of))}"
    if (folder / "ended.txt").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _give(truths, dampings, folder)
    command = [str(peer_python()), str(script.resolve()), str(folder.resolve()), str(threads)]
    environment = {**conditions(threads), "PYTHONPATH": str(ROOT / "benchmarks"), "HF_HUB_OFFLINE": "1"}
    reason = ""
    try:
        # In its own folder: bergson leaves a file where it runs.
        done = subprocess.run(  # noqa: S603
            command, check=False, env=environment, cwd=folder, capture_output=True, text=True, timeout=MOST_SECONDS
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            reason = f"its process ended with code {done.returncode}: {last[:200]}"
    except subprocess.TimeoutExpired:
        reason = f"stopped after {MOST_SECONDS} s, with what it had finished"
    write_atomically(folder / "ended.txt", reason.encode())
    return folder


def _give(truths: Truths, dampings: Sequence[float], folder: Path) -> None:
    data, task = truths.task.data, truths.task
    tensors: dict[str, torch.Tensor] = {}
    for place, checkpoint in enumerate(truths.checkpoints):
        for name, value in checkpoint.model.state_dict().items():
            tensors[f"checkpoint{place}.{name}"] = value.contiguous()
    for name, examples in (("train", data.training), ("query", data.queries)):
        inputs, targets = _tensors(task.name, examples)
        tensors |= {f"{name}_inputs": inputs.contiguous(), f"{name}_targets": targets.clone()}
    save_file(tensors, folder / "given.safetensors")
    said = {"task": task.name, "toy": task.toy, "dampings": list(dampings), "checkpoints": len(truths.checkpoints)}
    (folder / "given.json").write_text(json.dumps(said))


def _tensors(task: str, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.stack([example.inputs for example in examples])
    if task == "language":
        return inputs, inputs
    if task == "diabetes":
        return inputs, torch.stack([example.target for example in examples])
    return inputs, torch.tensor([example.target for example in examples])
