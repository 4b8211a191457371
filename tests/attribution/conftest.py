from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import ClassificationAdapter, ModelAdapter, RegressionAdapter
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.projection.random import projection_matrix
from gradtrail.nouns import Example


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class AnyClassifier(ClassificationAdapter):
    def __init__(self, build: Callable[[], nn.Module], examples: Sequence[Example]) -> None:
        self._build, self._examples = build, examples

    def build_model(self) -> nn.Module:
        return self._build()

    def training_data(self) -> Sequence[Example]:
        return self._examples


class AnyRegressor(RegressionAdapter):
    input_dtype: ClassVar[torch.dtype] = torch.float64

    def __init__(self, build: Callable[[], nn.Module], examples: Sequence[Example]) -> None:
        self._build, self._examples = build, examples

    def build_model(self) -> nn.Module:
        return self._build()

    def training_data(self) -> Sequence[Example]:
        return self._examples


class SmallConvolutionalNetwork(nn.Module):
    """Strides, dilation, channel groups, in-place activations, a residual sum and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding="same", groups=2, dilation=2, padding_mode="reflect")
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.shrink = nn.Conv2d(8, 12, (3, 2), stride=2, bias=False)
        self.shared = nn.Linear(12, 12)
        self.classify = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = nn.functional.relu(self.first(images), inplace=True)
        hidden = hidden + nn.functional.gelu(self.grouped(hidden))
        hidden = self.shrink(self.depthwise(hidden).relu_()).tanh().mean((2, 3))
        hidden = nn.functional.relu(self.shared(hidden), inplace=True)
        return self.classify(torch.tanh(self.shared(hidden)))


def deep_perceptron() -> nn.Module:
    widths = [12, 24, 24, 24, 24, 24, 24]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(24, 5))


def random_examples(count: int, *shape: int, classes: int = 5, seed: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Example(
            example_id=f"example-{number:03d}",
            inputs=torch.randn(*shape, generator=generator),
            target=int(torch.randint(classes, (), generator=generator)),
            attributes={"source": "abc"[number % 3]},
        )
        for number in range(count)
    ]


@pytest.fixture
def make_classifier() -> type[AnyClassifier]:
    return AnyClassifier


@pytest.fixture
def make_regressor() -> type[AnyRegressor]:
    return AnyRegressor


@pytest.fixture
def make_examples() -> Callable[..., list[Example]]:
    return random_examples


Setting = tuple[ModelAdapter, nn.Module, list[Example]]


@pytest.fixture
def convolutional() -> Setting:
    torch.manual_seed(1)
    examples = random_examples(12, 1, 9, 8)
    adapter = AnyClassifier(SmallConvolutionalNetwork, examples)
    return adapter, adapter.build_model(), examples


@pytest.fixture
def perceptron() -> Setting:
    torch.manual_seed(2)
    examples = random_examples(12, 12)
    adapter = AnyClassifier(deep_perceptron, examples)
    return adapter, adapter.build_model(), examples


@pytest.fixture(params=["convolutional", "perceptron"])
def network(request: pytest.FixtureRequest) -> Setting:
    setting: Setting = request.getfixturevalue(request.param)
    return setting


@pytest.fixture
def autograd_vectors() -> Callable[..., Tensor]:
    """Features by plain autograd: one backward pass per example to the weights, arranged and projected by hand."""

    def vectors(adapter: ModelAdapter, model: nn.Module, examples: Sequence[Example], plan: FeaturePlan) -> Tensor:
        return torch.stack([_one_vector(adapter, model, example, plan) for example in examples])

    return vectors


def _one_vector(adapter: ModelAdapter, model: nn.Module, example: Example, plan: FeaturePlan) -> Tensor:
    batch = adapter.collate([example])
    loss = adapter.losses(adapter.outputs(model, batch), batch).sum()
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    gradients = {name: gradient.to_dense() for name, gradient in zip(parameters, found, strict=True)}
    pieces = []
    for group in plan.groups:
        own = [gradients[name] for name in group.parameters]
        if group.modules:
            blocks = _arranged(model.get_submodule(group.modules[0]), own, group.blocks)
        else:
            blocks = own[0].reshape(1, len(own[0]) if own[0].ndim else 1, -1)
        if group.exact:
            pieces.append(blocks.flatten())
            continue
        diagonal = torch.block_diag(*blocks)
        for side, width in (("outputs", group.p_out), ("inputs", group.p_in)):
            height = diagonal.shape[0]
            if width < height:
                projection = projection_matrix(
                    height, width, seed=plan.settings.seed, group=group.name, side=side, dtype=diagonal.dtype
                )
                diagonal = projection.T @ diagonal
            diagonal = diagonal.T
        pieces.append(diagonal.flatten())
    return torch.cat(pieces)


NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _arranged(layer: nn.Module, gradients: list[Tensor], blocks: int) -> Tensor:
    """Weight and bias gradients as (blocks, rows, columns)."""
    weight = gradients[0]
    if isinstance(layer, NORMS):
        return torch.stack([gradient.flatten() for gradient in gradients])[None]
    if isinstance(layer, nn.Embedding):
        return weight.T[None]
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        outputs = weight.shape[1]
        matrices = weight.reshape(blocks, len(weight) // blocks, -1).transpose(1, 2)
        if len(gradients) == 1:
            return matrices
        column = torch.zeros(blocks, outputs, matrices.shape[1] // outputs)
        column[:, :, 0] = gradients[1].reshape(blocks, outputs)
        return torch.cat([matrices, column.reshape(blocks, -1, 1)], dim=2)
    if type(layer).__name__ == "Conv1D":
        weight = weight.T
    matrices = weight.reshape(blocks, len(weight) // blocks, -1)
    return torch.cat([matrices, *(bias.reshape(blocks, -1, 1) for bias in gradients[1:])], dim=2)
