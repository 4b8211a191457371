"""(G + Λ)⁻¹ on the full, unprojected gradient of a query, and the result projected into the features of an index.

G is the generalised Gauss-Newton matrix or the Hessian of the mean loss over the training examples, restricted to the
parameters the index covers. Its products come from curvlinops (the extra `curvature`), imported only when asked for.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import Batch, ModelAdapter, TrainingData, iterate_examples, measured_outputs
from gradtrail.attribution.curvature.damping import DEFAULT_DAMPING, Damping
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.gradients.eval_mode import frozen_in_eval
from gradtrail.attribution.layers.rules import find_rule
from gradtrail.attribution.numerics.linear_solvers import (
    Product,
    SolverOptions,
    conjugate_gradients,
    largest_eigenvalue,
    mean_eigenvalue,
    neumann_series,
    refuse_asymmetric,
)
from gradtrail.errors import DataError, ModelError, UsageError
from gradtrail.nouns import Example, Target

Solver = Literal["cg", "lissa"]
FULL_CURVATURES = ("ggn", "hessian")
QUERIES_TOGETHER = 16
"""Queries solved at once: each takes one more vector of parameters, and one more copy of the activations."""


@dataclass(frozen=True)
class Solutions:
    """`vectors` (queries, dimension) float64 in the order of the queries, and the largest relative residual left."""

    vectors: Tensor
    residual: float
    damping: float
    products: int


def inverse_curvature_products(
    solver: Solver,
    adapter: ModelAdapter,
    model: nn.Module,
    examples: Sequence[Example] | TrainingData,
    queries: Sequence[Example],
    plan: FeaturePlan,
    *,
    kind: str = "ggn",
    damping: Damping | None = None,
    options: SolverOptions | None = None,
    target: Target | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> Solutions:
    """Solve for each query, then project; `examples` are passed over once for every product.

    Λ is `damping` of the mean eigenvalue of G, estimated from a few random signs drawn from a fixed seed.

    Raises:
        UsageError: for an unknown kind, without curvlinops, or when a solver does not get there with this damping.
        DataError: without examples or queries.
        ModelError: when a covered parameter cannot be projected.
    """
    kind = full_curvature(kind)
    if len(examples) == 0 or len(queries) == 0:
        raise DataError(
            f"Method {solver} was given {len(examples)} training examples and {len(queries)} outputs.",
            "Pass at least one of each.",
        )
    options, damping = options or SolverOptions(), damping or DEFAULT_DAMPING
    names = [name for group in plan.groups for name in group.parameters]
    with frozen_in_eval(model):
        counted = _Counted(_curvature(adapter, model, examples, names, kind, batch_size, device))
        like = _like(model, names)
        if kind == "hessian":
            refuse_asymmetric(counted, like)
        added = damping.of(mean_eigenvalue(counted, like) if damping.relative else 0.0)

        def damped(matrix: Tensor) -> Tensor:
            return counted(matrix) + added * matrix

        largest = largest_eigenvalue(damped, like) if solver == "lissa" else 0.0
        solved, residual = [], 0.0
        for start in range(0, len(queries), QUERIES_TOGETHER):
            gradients = _gradients(adapter, model, queries[start : start + QUERIES_TOGETHER], names, target, device)
            if solver == "cg":
                found, left = conjugate_gradients(damped, gradients, options)
            else:
                found, left = neumann_series(damped, gradients, largest, options)
            residual = max(residual, left)
            solved.append(project_parameters(model, plan, names, found.T, device))
    return Solutions(torch.cat(solved), residual, added, counted.products)


def project_parameters(
    model: nn.Module, plan: FeaturePlan, names: Sequence[str], vectors: Tensor, device: str | torch.device = "cpu"
) -> Tensor:
    """Vectors over the parameters called `names` (batch, parameters), as features (batch, dimension) float64."""
    parameters = dict(model.named_parameters())
    sizes = [parameters[name].numel() for name in names]
    parts = dict(zip(names, torch.split(vectors, sizes, dim=1), strict=True))
    pieces = []
    for group, projection in zip(plan.groups, plan.projections(vectors.dtype, device), strict=True):
        own = {name: parts[name].reshape(-1, *parameters[name].shape) for name in group.parameters}
        blocks = torch.stack([_arranged(model, group.modules, group.d_out, row) for row in _rows(own)])
        summed = "bop,nboi,biq->nbpq" if projection.exact else "bop,nboi,biq->npq"
        pieces.append(torch.einsum(summed, projection.outputs, blocks, projection.inputs).flatten(1))
    return torch.cat(pieces, dim=1).cpu().double()


class _Counted:
    """A product with the curvature, and how often it was taken."""

    def __init__(self, product: Product) -> None:
        self.products = 0
        self._product = product

    def __call__(self, matrix: Tensor) -> Tensor:
        self.products += 1
        return self._product(matrix)


class _Measured(nn.Module):
    """The model as its adapter runs it, from a batch to outputs."""

    def __init__(self, adapter: ModelAdapter, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._adapter = adapter

    def forward(self, batch: Batch) -> Tensor:
        return measured_outputs(self._adapter, self.model, batch)


class _SummedLoss(nn.Module):
    """The adapter's losses, summed over a batch; curvlinops reads `reduction`."""

    reduction = "sum"

    def __init__(self, adapter: ModelAdapter) -> None:
        super().__init__()
        self._adapter = adapter

    def forward(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self._adapter.losses(outputs, batch).sum()


class _Batches:
    """The training examples in batches, as often as asked."""

    def __init__(
        self, adapter: ModelAdapter, examples: Iterable[Example] | TrainingData, size: int, device: str | torch.device
    ) -> None:
        self._adapter, self._examples, self._size, self._device = adapter, examples, size, device

    def __iter__(self) -> Iterator[tuple[Batch, Batch]]:
        remaining = iterate_examples(self._examples)
        while part := list(islice(remaining, self._size)):
            batch = self._adapter.collate(part).to(self._device)
            yield batch, batch


def _curvature(
    adapter: ModelAdapter,
    model: nn.Module,
    examples: Sequence[Example] | TrainingData,
    names: Sequence[str],
    kind: str,
    batch_size: int,
    device: str | torch.device,
) -> Product:
    """Products with G: (parameters, columns) to the same."""
    operators = _curvlinops()
    measured = _Measured(adapter, model)
    every = dict(model.named_parameters())
    chosen = operators.GGNLinearOperator if kind == "ggn" else operators.HessianLinearOperator
    operator = chosen(
        measured,
        _SummedLoss(adapter),
        [every[name] for name in names],
        _Batches(adapter, examples, batch_size, device),
        num_data=len(examples),
        # Read only to average, and the losses are summed.
        batch_size_fn=lambda _: 1,
        # The determinism of the model is checked before any index is built (attribution.checks).
        check_deterministic=False,
    )

    def product(matrix: Tensor) -> Tensor:
        try:
            found: Tensor = operator @ matrix
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as cause:
            raise ModelError(
                f"torch.func cannot differentiate {type(model).__name__} twice, which the curvature of all parameters "
                f"needs: {str(cause).strip().splitlines()[0]}",
                "Choose a method on the stored table, for example influence_global.",
            ) from cause
        return found / len(examples)

    return product


def _curvlinops() -> Any:
    try:
        with warnings.catch_warnings():
            # A dependency of curvlinops compiles with torch.jit, which torch deprecates.
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module("curvlinops")
    except ModuleNotFoundError as cause:
        raise UsageError(
            f"Methods cg and lissa need curvlinops, which is not installed (no module {cause.name}).",
            "Install it: pip install 'gradtrail[curvature]'.",
        ) from cause


def _gradients(
    adapter: ModelAdapter,
    model: nn.Module,
    queries: Sequence[Example],
    names: Sequence[str],
    target: Target | None,
    device: str | torch.device,
) -> Tensor:
    """Full gradients of each query's loss: (parameters, queries)."""
    every = dict(model.named_parameters())
    wanted = [every[name] for name in names]
    columns = []
    try:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for query in queries:
            batch = adapter.collate([query]).to(device)
            measure = adapter.emitted_losses if target == "emitted" else adapter.losses
            loss = measure(measured_outputs(adapter, model, batch), batch).sum()
            found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
            columns.append(torch.cat([gradient.flatten() for gradient in found]))
    finally:
        for parameter in wanted:
            parameter.requires_grad_(False)
    return torch.stack(columns, dim=1)


def full_curvature(name: str) -> str:
    """The curvature of all parameters called `name`, `ggn` for none; UsageError lists the known ones otherwise."""
    if name and name not in FULL_CURVATURES:
        raise UsageError(
            f"There is no full curvature {name!r}.", f"Choose one of {', '.join(FULL_CURVATURES)} for cg and lissa."
        )
    return name or "ggn"


def _like(model: nn.Module, names: Sequence[str]) -> Tensor:
    """An empty matrix with a row per parameter, in the parameters' type and place."""
    every = dict(model.named_parameters())
    first = every[names[0]]
    return torch.empty(sum(every[name].numel() for name in names), 0, dtype=first.dtype, device=first.device)


def _rows(own: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    count = len(next(iter(own.values())))
    return ({name: values[row] for name, values in own.items()} for row in range(count))


def _arranged(model: nn.Module, modules: Sequence[str], d_out: int, own: dict[str, Tensor]) -> Tensor:
    """One vector's part of a group as the layer rule arranges it: (blocks, d_out, d_in)."""
    if not modules:
        (values,) = own.values()
        return values.reshape(1, d_out, -1)
    layer = model.get_submodule(modules[0])
    rule = find_rule(layer)
    if rule is None:
        raise ModelError(f"Layer {modules[0]} has no rule.", "Plan the features of the model that is measured.")
    return rule.matrix(layer, {name.rpartition(".")[2]: values for name, values in own.items()})
