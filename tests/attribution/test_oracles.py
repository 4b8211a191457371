"""What the scores must predict in the world: exact leave-one-out of a convex model, and planted wrong labels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradtrail.attribution.curvature.blocks import BlockCurvature
from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.spectrum import Spectrum, margin_vectors
from gradtrail.attribution.curvature.vectors import model_vectors, observed_vectors
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import compute_features, iterate_features
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.scoring.self_scores import self_influence, summed_self_influence
from gradtrail.demo.digits import DigitsAdapter, load_digits_data, train
from gradtrail.nouns import Example

RIDGE = 0.5
COUNT, WIDTH, CLASSES, LEFT_OUT, QUERIES = 900, 4, 3, 150, 20


def newton(inputs: Tensor, targets: Tensor, start: Tensor, steps: int) -> Tensor:
    """Minimise Σ cross entropy + ½ ridge ‖W‖², W (classes, width + 1)."""
    weights = start.clone()
    for _ in range(steps):
        probabilities = (inputs @ weights.T).softmax(1)
        gradient = (probabilities - functional.one_hot(targets, CLASSES)).T @ inputs + RIDGE * weights
        curved = torch.diag_embed(probabilities) - probabilities.unsqueeze(2) * probabilities.unsqueeze(1)
        hessian = torch.einsum("nkl,ni,nj->kilj", curved, inputs, inputs).reshape(weights.numel(), -1)
        hessian += RIDGE * torch.eye(len(hessian), dtype=torch.float64)
        weights -= torch.linalg.solve(hessian, gradient.flatten()).reshape(weights.shape)
    return weights


def test_influence_with_ggn_agrees_with_exact_leave_one_out_on_logistic_regression(make_classifier):
    class Double(make_classifier):
        input_dtype = torch.float64

    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(COUNT + QUERIES, WIDTH, generator=generator, dtype=torch.float64)
    truth = torch.randn(WIDTH, CLASSES, generator=generator, dtype=torch.float64)
    targets = torch.multinomial((inputs @ truth).softmax(1), 1, generator=generator)[:, 0]
    everything = [Example(f"{i:04d}", inputs[i], int(targets[i])) for i in range(COUNT + QUERIES)]
    examples, outputs = everything[:COUNT], everything[COUNT:]
    extended = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)

    best = newton(extended[:COUNT], targets[:COUNT], torch.zeros(CLASSES, WIDTH + 1, dtype=torch.float64), 12)
    rows = torch.arange(COUNT)

    def query_losses(weights: Tensor) -> Tensor:
        return functional.cross_entropy(extended[COUNT:] @ weights.T, targets[COUNT:], reduction="none")

    kept = [rows[rows != left] for left in range(LEFT_OUT)]
    retrained = [newton(extended[others], targets[others], best, 3) for others in kept]
    effects = torch.stack([query_losses(weights) - query_losses(best) for weights in retrained], dim=1)

    adapter = Double(lambda: nn.Linear(WIDTH, CLASSES).double(), examples)
    model = adapter.build_model()
    with torch.no_grad():
        model.weight.copy_(best[:, :WIDTH])
        model.bias.copy_(best[:, WIDTH])
    plan = plan_features(model, FeatureSettings(group_dimension=100, dtype="float64"))
    measured = compute_features(adapter, model, examples, plan)
    queries = compute_features(adapter, model, outputs, plan)
    correlations, slopes = {}, {}
    for source in (
        model_vectors(adapter, model, examples, plan, kind="ggn"),
        observed_vectors([measured], plan),
    ):
        prepared = prepare_queries(
            MethodSpec("influence", damping=Damping(0.0, RIDGE / COUNT)),
            queries,
            plan,
            curvature=BlockCurvature.fit(source),
        )
        found = (prepared.vectors @ measured.vectors.T)[:, :LEFT_OUT]
        pairs = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(found, effects, strict=True)]
        correlations[source.kind] = torch.stack(pairs).mean().item()
        slopes[source.kind] = ((found * effects).sum() / found.square().sum() * COUNT).item()
    print("mean correlation with exact leave-one-out:", correlations, "slope:", slopes)
    assert correlations["ggn"] >= 0.99
    assert slopes["ggn"] == pytest.approx(1, rel=0.05)


def area_under_curve(values: dict[str, float], positive: frozenset[str]) -> float:
    above = torch.tensor([value for name, value in values.items() if name in positive])
    below = torch.tensor([value for name, value in values.items() if name not in positive])
    wins = (above.unsqueeze(1) > below).double() + 0.5 * (above.unsqueeze(1) == below).double()
    return wins.mean().item()


def test_self_influence_finds_planted_wrong_labels_among_handwritten_digits():
    data, adapter = load_digits_data(), DigitsAdapter()
    model, steps = train(epochs=6)
    plan = plan_features(model, FeatureSettings(group_dimension=64))
    rows = list(iterate_features(adapter, model, data.training, plan, batch_size=64))
    areas = {}
    for method, needs in (
        ("grad_dot", {}),
        ("influence", {"curvature": BlockCurvature.fit(observed_vectors(rows, plan))}),
        ("influence_global", {"spectrum": Spectrum.fit(observed_vectors(rows, plan))}),
        ("datainf", {"training_rows": lambda: rows}),
        ("trak", {"kernel": Spectrum.fit(margin_vectors(lambda: rows, plan))}),
    ):
        parts = self_influence(MethodSpec(method), lambda: rows, plan, **needs)
        areas[method] = area_under_curve(summed_self_influence([parts]), data.mislabelled)
    checkpoints = []
    for step in steps:
        earlier = adapter.build_model()
        earlier.load_state_dict(step.state_dict)
        own = list(iterate_features(adapter, earlier, data.training, plan, batch_size=64))
        checkpoints.append(
            self_influence(MethodSpec("tracin_cp"), lambda own=own: own, plan, learning_rate=step.learning_rate)
        )
    areas["tracin_cp"] = area_under_curve(summed_self_influence(checkpoints), data.mislabelled)
    print(f"area under the curve for {len(data.mislabelled)} wrong labels of {len(data.training)}:", areas)
    assert min(areas.values()) >= 0.9
