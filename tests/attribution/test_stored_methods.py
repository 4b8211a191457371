"""Each method on the stored table against a dense reference, made from the same vectors by the book."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import ClassificationAdapter
from gradtrail.attribution.curvature.blocks import DiagonalCurvature
from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.spectrum import Spectrum, margin_vectors
from gradtrail.attribution.curvature.vectors import curvature_kind, model_vectors, observed_vectors
from gradtrail.attribution.features.margins import one_minus_probability, require_probabilities
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.features.weights import stored_vectors
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.methods.rules import METHODS, prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.errors import DataError, StoreError, UsageError
from gradtrail.nouns import Weighting

EXACT = FeatureSettings(group_dimension=10**6, dtype="float64")


def relative(left: Tensor, right: Tensor) -> float:
    return ((left - right).norm() / right.norm()).item()


@pytest.fixture
def linear_rows(make_classifier, make_examples):
    """Forty examples of a double precision classifier with 8 + 15 parameters in two groups, kept exactly."""

    class Double(make_classifier):
        input_dtype = torch.float64

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 5)).double()

    torch.manual_seed(4)
    examples = make_examples(40, 3)
    adapter = Double(build, examples)
    model = adapter.build_model()
    plan = plan_features(model, EXACT)
    return adapter, model, plan, compute_features(adapter, model, examples, plan)


@pytest.fixture(params=[40, 12])
def spectrum_case(request, linear_rows):
    """More rows than dimensions, and fewer: the primal and the dual way."""
    _, _, plan, rows = linear_rows
    some = dataclasses.replace(rows, vectors=rows.vectors[: request.param], example_ids=rows.example_ids)
    return plan, some.vectors, Spectrum.fit(observed_vectors([some], plan)), rows


def test_influence_global_is_the_damped_inverse_over_all_groups_primal_and_dual(spectrum_case):
    plan, vectors, spectrum, rows = spectrum_case
    curvature = vectors.T @ vectors / len(vectors)
    assert spectrum.mean_eigenvalue == pytest.approx(curvature.trace().item() / plan.dimension, rel=1e-10)
    for relative_damping, absolute in ((0.1, 0.0), (1e-3, 1e-4), (5.0, 0.0)):
        prepared = prepare_queries(
            MethodSpec("influence_global", damping=Damping(relative_damping, absolute)), rows, plan, spectrum=spectrum
        )
        added = relative_damping * curvature.trace() / plan.dimension + absolute
        expected = rows.vectors @ torch.linalg.inv(curvature + added * torch.eye(plan.dimension).double())
        assert relative(prepared.vectors, expected) < 1e-8


def test_pieces_of_any_size_give_the_same_spectrum(linear_rows):
    _, _, plan, rows = linear_rows
    whole = Spectrum.fit(observed_vectors([rows], plan))
    parts = [dataclasses.replace(rows, vectors=part) for part in rows.vectors.split(7)]
    streamed = Spectrum.fit(observed_vectors(parts, plan))
    assert streamed.example_count == 40
    assert relative(streamed.eigenvalues, whole.eigenvalues) < 1e-10
    assert relative(streamed.solve(rows.vectors, Damping()), whole.solve(rows.vectors, Damping())) < 1e-10


def test_the_spectrum_of_the_ggn_is_that_of_the_model(linear_rows):
    adapter, model, plan, rows = linear_rows
    pieces = model_vectors(adapter, model, adapter.training_data(), plan, kind="ggn", batch_size=16)
    spectrum = Spectrum.fit(pieces)
    batch = adapter.collate(adapter.training_data())
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (batch.inputs,)))(
        dict(model.named_parameters())
    )
    columns = []
    for weight, bias in (("0.weight", "0.bias"), ("2.weight", "2.bias")):
        columns.append(torch.cat([jacobian[weight], jacobian[bias].unsqueeze(3)], dim=3).flatten(2))
    by_output = torch.cat(columns, dim=2)
    probabilities = model(batch.inputs).softmax(1)
    hessians = torch.diag_embed(probabilities) - probabilities.unsqueeze(2) * probabilities.unsqueeze(1)
    ggn = torch.einsum("nkp,nkl,nlq->pq", by_output, hessians, by_output) / 40
    expected = torch.linalg.inv(ggn + ggn.trace() / plan.dimension * torch.eye(plan.dimension).double())
    assert relative(spectrum.solve(rows.vectors, Damping()), rows.vectors @ expected) < 1e-8
    assert spectrum.kind == "ggn"


def test_a_short_horizon_is_grad_dot_and_a_long_one_is_influence(spectrum_case):
    plan, vectors, spectrum, rows = spectrum_case
    short = prepare_queries(MethodSpec("horizon", horizon=1e-9), rows, plan, spectrum=spectrum).vectors
    assert relative(short / 1e-9, rows.vectors) < 1e-6
    long = prepare_queries(MethodSpec("horizon", horizon=1e7), rows, plan, spectrum=spectrum).vectors
    # Scores against the rows the curvature is made of: directions outside their span do not count.
    expected = rows.vectors @ torch.linalg.pinv(vectors.T @ vectors / len(vectors), rtol=1e-12) @ vectors.T
    top = spectrum.eigenvalues > 1e-9 * spectrum.eigenvalues.max()
    assert top.all()
    assert relative(long @ spectrum.eigenvectors @ spectrum.eigenvectors.T @ vectors.T, expected) < 1e-5


def test_a_horizon_is_gradient_descent_on_the_quadratic(spectrum_case):
    plan, vectors, spectrum, rows = spectrum_case
    curvature, rate, steps = vectors.T @ vectors / len(vectors), 1e-3, 4000
    state = torch.zeros_like(rows.vectors)
    for _ in range(steps):
        state = state + rate * (rows.vectors - state @ curvature)
    found = prepare_queries(MethodSpec("horizon", horizon=rate * steps), rows, plan, spectrum=spectrum).vectors
    assert relative(found, state) < 1e-3


def test_without_a_horizon_the_damping_is_the_horizon(spectrum_case):
    plan, _, spectrum, rows = spectrum_case
    implied = prepare_queries(MethodSpec("horizon", damping=Damping(0, 0.25)), rows, plan, spectrum=spectrum)
    stated = prepare_queries(MethodSpec("horizon", horizon=4.0), rows, plan, spectrum=spectrum)
    assert torch.equal(implied.vectors, stated.vectors)
    with pytest.raises(UsageError, match="neither a horizon nor a damping"):
        prepare_queries(MethodSpec("horizon", damping=Damping(0)), rows, plan, spectrum=spectrum)
    for bad in (0.0, -1.0, float("inf")):
        with pytest.raises(UsageError, match="A horizon of"):
            prepare_queries(MethodSpec("horizon", horizon=bad), rows, plan, spectrum=spectrum)


def test_datainf_is_the_mean_of_the_inverses(linear_rows):
    _, _, plan, rows = linear_rows
    stored = Weighting("test", {group.name: 1.0 + position for position, group in enumerate(plan.groups)})
    weighted = [dataclasses.replace(rows, vectors=stored_vectors(rows.vectors, plan, stored))]
    prepared = prepare_queries(
        MethodSpec("datainf", damping=Damping(0.2, 1e-3)),
        rows,
        plan,
        stored,
        training_rows=lambda: weighted,
        stored_weighting=stored,
    )
    found = prepared.vectors @ weighted[0].vectors.T
    weights = torch.tensor([2 / 3, 4 / 3], dtype=torch.float64)
    expected = torch.zeros(40, 40, dtype=torch.float64)
    for weight, columns in zip(weights, plan.slices, strict=True):
        own = rows.vectors[:, columns]
        damping = 0.2 * own.square().sum(1).mean() / own.shape[1] + 1e-3
        identity = torch.eye(own.shape[1], dtype=torch.float64)
        inverses = torch.stack([torch.linalg.inv(damping * identity + torch.outer(row, row)) for row in own])
        expected += weight * own @ inverses.mean(0) @ own.T
    assert relative(found, expected) < 1e-9


def test_datainf_without_damping_is_refused_and_dead_groups_score_nothing(linear_rows):
    _, _, plan, rows = linear_rows
    with pytest.raises(UsageError, match=r"group 0 is singular with damping 0"):
        prepare_queries(MethodSpec("datainf", damping=Damping(0)), rows, plan, training_rows=lambda: [rows])
    with pytest.raises(DataError, match="without examples"):
        prepare_queries(MethodSpec("datainf"), rows, plan, training_rows=list)
    vectors, squares = rows.vectors.clone(), rows.squared_norms.clone()
    vectors[:, plan.slices[0]], squares[:, 0] = 0, 0
    dead = dataclasses.replace(rows, vectors=vectors, squared_norms=squares)
    prepared = prepare_queries(MethodSpec("datainf"), rows, plan, training_rows=lambda: [dead])
    assert not prepared.vectors[:, plan.slices[0]].any()
    assert prepared.vectors[:, plan.slices[1]].any()


def test_trak_agrees_with_trak_from_margin_gradients(linear_rows):
    adapter, model, plan, rows = linear_rows
    batch = adapter.collate(adapter.training_data())

    def margin(parameters, inputs, target):
        logits = torch.func.functional_call(model, parameters, (inputs[None],))[0]
        log_p = logits.log_softmax(0).gather(0, target[None])[0]
        return log_p - torch.log1p(-log_p.exp())

    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    gradients = torch.func.vmap(torch.func.grad(margin), (None, 0, 0))(parameters, batch.inputs, batch.targets)
    margins = torch.cat(
        [
            torch.cat([gradients[weight], gradients[bias].unsqueeze(2)], dim=2).flatten(1)
            for weight, bias in (("0.weight", "0.bias"), ("2.weight", "2.bias"))
        ],
        dim=1,
    )
    probabilities = model(batch.inputs).softmax(1).gather(1, batch.targets[:, None])[:, 0].detach()
    kernel = margins.T @ margins + 1e-3 * torch.eye(plan.dimension).double()
    expected = margins @ torch.linalg.inv(kernel) @ margins.T * (1 - probabilities)

    prepared = prepare_queries(
        MethodSpec("trak", damping=Damping(0, 1e-3 / 40)),
        rows,
        plan,
        kernel=Spectrum.fit(margin_vectors(lambda: [rows], plan)),
    )
    found = prepared.vectors @ rows.vectors.T
    print("trak against margin gradients:", relative(found, expected))
    assert relative(found, expected) < 1e-8


def test_one_minus_p_keeps_its_digits_where_the_model_is_sure(linear_rows):
    _, _, plan, rows = linear_rows
    tiny = torch.tensor([1e-5, 0.5, 40.0])
    assert one_minus_probability(tiny)[0].item() == pytest.approx(1e-5, rel=1e-5)
    sure = dataclasses.replace(rows, losses=torch.where(torch.arange(40) < 3, 1e-7, rows.losses))
    assert Spectrum.fit(margin_vectors(lambda: [sure], plan)).example_count == 37
    with pytest.raises(DataError, match="loss of zero"):
        Spectrum.fit(
            margin_vectors(lambda: [dataclasses.replace(rows, losses=torch.zeros(40, dtype=torch.float64))], plan)
        )


def test_trak_refuses_losses_that_are_no_log_probability(linear_rows, make_regressor):
    adapter, _, plan, rows = linear_rows
    require_probabilities(adapter)
    with pytest.raises(UsageError, match="AnyRegressor is no ClassificationAdapter"):
        require_probabilities(make_regressor(lambda: nn.Linear(1, 1), []))

    class Smoothed(ClassificationAdapter):
        def build_model(self):
            return nn.Linear(1, 1)

        def training_data(self):
            return []

        def losses(self, outputs, batch):
            return 0.9 * super().losses(outputs, batch)

    with pytest.raises(UsageError, match="with its cross entropy"):
        require_probabilities(Smoothed())
    negative = dataclasses.replace(rows, losses=-rows.losses)
    with pytest.raises(UsageError, match="met a loss of -"):
        Spectrum.fit(margin_vectors(lambda: [negative], plan))


def test_tracin_cp_is_grad_dot_times_the_learning_rate(linear_rows):
    _, _, plan, rows = linear_rows
    prepared = prepare_queries(MethodSpec("tracin_cp"), rows, plan, learning_rate=0.02)
    assert torch.equal(prepared.vectors, rows.vectors * 0.02)
    with pytest.raises(UsageError, match="needs the learning rate at its checkpoint") as caught:
        prepare_queries(MethodSpec("tracin_cp"), rows, plan)
    assert "grad_dot" in caught.value.remedy
    with pytest.raises(UsageError, match="A learning rate of -1"):
        prepare_queries(MethodSpec("tracin_cp"), rows, plan, learning_rate=-1.0)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.needs and name != "ekfac"])
def test_a_method_without_what_it_needs_says_so(linear_rows, method):
    _, _, plan, rows = linear_rows
    with pytest.raises(UsageError, match=f"Method {method} needs"):
        prepare_queries(MethodSpec(method), rows, plan)


@pytest.mark.parametrize(("relative_damping", "absolute"), [(-0.1, 0), (0.1, -1), (float("nan"), 0), (0, float("inf"))])
def test_dampings_that_are_negative_or_not_finite_are_refused(relative_damping, absolute):
    with pytest.raises(UsageError, match="Damping relative="):
        Damping(relative_damping, absolute)


def test_unknown_kinds_singular_spectra_and_foreign_ones_are_refused(linear_rows):
    _, _, plan, rows = linear_rows
    with pytest.raises(UsageError, match="no curvature kind 'hessian'"):
        curvature_kind("hessian")
    few = dataclasses.replace(rows, vectors=rows.vectors[:5])
    spectrum = Spectrum.fit(observed_vectors([few], plan))
    assert len(spectrum.eigenvalues) == 5
    with pytest.raises(UsageError, match="all groups together is singular"):
        prepare_queries(MethodSpec("influence_global", damping=Damping(0)), rows, plan, spectrum=spectrum)
    with pytest.raises(StoreError, match="other groups"):
        spectrum.solve(rows.vectors[:, 1:], Damping())
    with pytest.raises(DataError, match="without examples"):
        Spectrum.fit(observed_vectors([], plan))


def test_a_spectrum_beyond_what_is_decomposed_is_refused(linear_rows, monkeypatch):
    _, _, plan, rows = linear_rows
    monkeypatch.setattr("gradtrail.attribution.curvature.spectrum.LARGEST_SIDE", 20)
    with pytest.raises(UsageError, match="has 23 dimensions"):
        Spectrum.fit(observed_vectors([rows], plan))


def test_spectra_and_diagonals_survive_a_safetensors_file(tmp_path, linear_rows):
    from safetensors.torch import load_file, save_file

    _, _, plan, rows = linear_rows
    for kind in (Spectrum, DiagonalCurvature):
        fitted = kind.fit(observed_vectors([rows], plan))
        save_file(fitted.to_tensors(), tmp_path / "fitted.safetensors")
        back = kind.from_tensors(load_file(tmp_path / "fitted.safetensors"), "empirical")
        assert torch.equal(
            back.solve(rows.vectors, *([plan] if kind is DiagonalCurvature else []), Damping()),
            fitted.solve(rows.vectors, *([plan] if kind is DiagonalCurvature else []), Damping()),
        )
        with pytest.raises(StoreError, match="of kind empirical, not ggn"):
            kind.from_tensors(fitted.to_tensors(), "ggn")
        with pytest.raises(StoreError, match="holds"):
            kind.from_tensors({})
