"""Our scores against those of peers on the same weights and data, computed now in the peers' own environment.

EK-FAC against kronfluence with the empirical Fisher, equal absolute damping, float64; TRAK against traker on the same
unprojected features without half precision. With --stored the peers' scores are those kept with the tests.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, ROOT, conditions, environment, start_again_under_conditions, write_results
from peer_environment import peer_python
from safetensors.torch import load_file
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import ClassificationAdapter
from gradtrail.attribution.curvature.blocks import DiagonalCurvature
from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.kronecker import fit_eigen_basis
from gradtrail.attribution.curvature.spectrum import Spectrum, margin_vectors
from gradtrail.attribution.curvature.vectors import observed_vectors
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.nouns import Example

SCRIPTS = ROOT / "tests" / "attribution" / "peer_scores"
EXACT = FeatureSettings(group_dimension=10**6, dtype="float64")
EKFAC_DAMPING = 1e-3


class PeerData(ClassificationAdapter):
    """The weights and data a peer was given."""

    def __init__(self, network: nn.Module, saved: Mapping[str, Tensor]) -> None:
        self.input_dtype = saved["inputs"].dtype  # type: ignore[misc]  # one type a peer
        prefix = "model."
        network.load_state_dict({name.removeprefix(prefix): saved[name] for name in saved if name.startswith(prefix)})
        self.network = network
        pairs = zip(saved["inputs"], saved["targets"].tolist(), strict=True)
        self.examples = [Example(f"{number:03d}", inputs, target) for number, (inputs, target) in enumerate(pairs)]

    def build_model(self) -> nn.Module:
        return self.network

    def training_data(self) -> Sequence[Example]:
        return self.examples


def ekfac(saved: Mapping[str, Tensor]) -> Tensor:
    """Our EK-FAC scores, (queries, examples)."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.Tanh(), nn.Conv2d(4, 6, 2), nn.Tanh(), nn.Flatten(),
        nn.Linear(24, 7), nn.ReLU(), nn.Linear(7, 5),
    ).double()  # fmt: skip
    data = PeerData(network, saved)
    plan = plan_features(network, EXACT)
    basis = fit_eigen_basis(data, network, data.examples, plan, kind="empirical")
    plan = dataclasses.replace(plan, basis=basis)
    rows = compute_features(data, network, data.examples, plan)
    diagonal = DiagonalCurvature.fit(observed_vectors([rows], plan))
    prepared = prepare_queries(MethodSpec("ekfac", damping=Damping(0, EKFAC_DAMPING)), rows, plan, diagonal=diagonal)
    return prepared.vectors[: len(saved["scores"])] @ rows.vectors.T


def trak(saved: Mapping[str, Tensor]) -> Tensor:
    """Our TRAK scores, (queries, examples), times the one factor by which traker scales its inverse kernel."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 5))
    data = PeerData(network, saved)
    plan = plan_features(network, EXACT)
    rows = compute_features(data, network, data.examples, plan)
    kernel = Spectrum.fit(margin_vectors(lambda: [rows], plan))
    damping = saved["ridge"].item() / len(data.examples)
    prepared = prepare_queries(MethodSpec("trak", damping=Damping(0, damping)), rows, plan, kernel=kernel)
    found = prepared.vectors[: len(saved["scores"])] @ rows.vectors.T
    return found * (found * saved["scores"]).sum() / found.square().sum()


@dataclasses.dataclass(frozen=True)
class Oracle:
    """A method of ours, the peer that has it, and how far the two may differ."""

    method: str
    peer: str
    engine: str
    ours: Callable[[Mapping[str, Tensor]], Tensor]
    wanted: float
    conditions: str


ORACLES = (
    Oracle("ekfac", "kronfluence", "kronfluence 1.0.1", ekfac, 1e-4, "empirical Fisher, absolute damping, float64"),
    Oracle("trak", "traker", "traker 0.3.2", trak, 1e-3, "same features, float32, up to traker's one factor"),
)


def compare(oracle: Oracle, folder: Path, *, stored: bool, threads: int) -> dict[str, Any]:
    """The row of one oracle."""
    if stored:
        path = SCRIPTS / f"{oracle.peer}.safetensors"
    else:
        path = folder / f"{oracle.peer}.safetensors"
        script = SCRIPTS / f"from_{oracle.peer}.py"
        command = [str(peer_python()), str(script), str(path)]
        subprocess.run(command, check=True, env=conditions(threads), capture_output=True)  # noqa: S603
    saved = load_file(path)
    found, expected = oracle.ours(saved).double(), saved["scores"].double()
    difference = ((found - expected).norm() / expected.norm()).item()
    return {
        "model": "small network" if oracle.peer == "traker" else "small convolutional network",
        "engine": oracle.engine,
        "method": oracle.method,
        "relative_difference": difference,
        "largest_difference": ((found - expected).abs().max() / expected.abs().max()).item(),
        "wanted": oracle.wanted,
        "holds": difference <= oracle.wanted,
        "queries": len(expected),
        "examples": expected.shape[1],
        "conditions": oracle.conditions,
        "computed_now": not stored,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stored", action="store_true", help="the scores kept with the tests, not computed now")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "peers.json")
    options = parser.parse_args()
    start_again_under_conditions(options.threads)
    torch.manual_seed(0)
    described = environment(options.threads, ["torch", "numpy", "safetensors"])
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare(oracle, Path(folder), stored=options.stored, threads=options.threads) for oracle in ORACLES]
    for row in rows:
        print(f"{row['method']:6} against {row['engine']}: {row['relative_difference']:.2e} (at most {row['wanted']})")
    write_results(options.output, described, rows)


if __name__ == "__main__":
    main()
