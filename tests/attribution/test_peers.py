"""Scores that other libraries computed once, for the same weights and data; `peer_scores/` says how."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

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

EXACT = FeatureSettings(group_dimension=10**6, dtype="float64")


def relative(left: Tensor, right: Tensor) -> float:
    return ((left - right).norm() / right.norm()).item()


def read_peer(make_classifier, name: str, network: nn.Module):
    stored = load_file(Path(__file__).parent / "peer_scores" / f"{name}.safetensors")
    pairs = zip(stored["inputs"], stored["targets"].tolist(), strict=True)
    examples = [Example(f"{number:03d}", inputs, target) for number, (inputs, target) in enumerate(pairs)]

    class Same(make_classifier):
        input_dtype = stored["inputs"].dtype

    network.load_state_dict({key.removeprefix("model."): stored[key] for key in stored if key.startswith("model.")})
    return Same(lambda: network, examples), network, examples, stored


def test_ekfac_agrees_with_kronfluence(make_classifier):
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.Tanh(), nn.Conv2d(4, 6, 2), nn.Tanh(), nn.Flatten(),
        nn.Linear(24, 7), nn.ReLU(), nn.Linear(7, 5),
    ).double()  # fmt: skip
    adapter, model, examples, stored = read_peer(make_classifier, "kronfluence", network)
    plan = plan_features(model, EXACT)
    plan = dataclasses.replace(plan, basis=fit_eigen_basis(adapter, model, examples, plan, kind="empirical"))
    rows = compute_features(adapter, model, examples, plan)
    diagonal = DiagonalCurvature.fit(observed_vectors([rows], plan))
    prepared = prepare_queries(MethodSpec("ekfac", damping=Damping(0, 1e-3)), rows, plan, diagonal=diagonal)
    found = prepared.vectors[: len(stored["scores"])] @ rows.vectors.T
    print("ekfac against kronfluence 1.0.1:", relative(found, stored["scores"]))
    assert relative(found, stored["scores"]) < 1e-6


def test_trak_agrees_with_traker_up_to_its_one_factor(make_classifier):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 5))
    adapter, model, examples, stored = read_peer(make_classifier, "traker", network)
    plan = plan_features(model, EXACT)
    rows = compute_features(adapter, model, examples, plan)
    prepared = prepare_queries(
        MethodSpec("trak", damping=Damping(0, stored["ridge"].item() / len(examples))),
        rows,
        plan,
        kernel=Spectrum.fit(margin_vectors(lambda: [rows], plan)),
    )
    found = prepared.vectors[: len(stored["scores"])] @ rows.vectors.T
    factor = (found * stored["scores"]).sum() / found.square().sum()
    print("trak against traker 0.3.2:", relative(factor * found, stored["scores"]))
    assert relative(factor * found, stored["scores"]) < 1e-3
