from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import check_determinism, compute_features
from gradtrail.attribution.gradients.checks import check_capture
from gradtrail.attribution.layers.rules import find_rule
from gradtrail.errors import ModelError
from gradtrail.nouns import Example


class Conv1D(nn.Module):
    """As in transformers.pytorch_utils: a linear layer whose weight is (inputs, outputs)."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight + self.bias


def used(norm: nn.Module) -> nn.Module:
    """With weights and running statistics that differ from their initial ones."""
    with torch.no_grad():
        for value in (*norm.parameters(), *(b for b in norm.buffers() if b.is_floating_point())):
            value.uniform_(0.5, 2)
    return norm


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 7), (6,)),
    "linear without bias": (lambda: nn.Linear(6, 7, bias=False), (6,)),
    "linear on a sequence": (lambda: nn.Linear(6, 7), (4, 6)),
    "linear on a grid": (lambda: nn.Linear(6, 7), (2, 3, 6)),
    "linear with few outputs": (lambda: nn.Linear(30, 2), (30,)),
    "linear with few inputs": (lambda: nn.Linear(1, 40), (1,)),
    "convolution": (lambda: nn.Conv2d(3, 6, 3), (3, 7, 6)),
    "convolution without bias": (lambda: nn.Conv2d(3, 6, 3, bias=False), (3, 7, 6)),
    "stride and padding": (lambda: nn.Conv2d(3, 6, (3, 2), stride=(2, 3), padding=(2, 1)), (3, 7, 6)),
    "padding same with dilation": (lambda: nn.Conv2d(3, 6, 3, padding="same", dilation=2), (3, 7, 6)),
    "padding valid": (lambda: nn.Conv2d(3, 6, 3, padding="valid"), (3, 7, 6)),
    "padding with reflection": (lambda: nn.Conv2d(3, 6, 3, padding=2, padding_mode="reflect"), (3, 7, 6)),
    "padding with replication": (lambda: nn.Conv2d(3, 6, 3, padding=2, padding_mode="replicate"), (3, 7, 6)),
    "circular padding": (lambda: nn.Conv2d(3, 6, 4, padding="same", padding_mode="circular"), (3, 7, 6)),
    "channel groups": (lambda: nn.Conv2d(4, 8, 3, groups=2, stride=2), (4, 7, 6)),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6, bias=False), (6, 7, 6)),
    "depthwise, same": (lambda: nn.Conv2d(6, 6, 4, groups=6, padding="same", dilation=(1, 2)), (6, 7, 6)),
    "depthwise, valid": (lambda: nn.Conv2d(6, 6, 3, groups=6, padding="valid", stride=2), (6, 8, 6)),
    "depthwise with reflection": (
        lambda: nn.Conv2d(6, 6, (3, 2), groups=6, padding=1, stride=(2, 1), padding_mode="reflect"),
        (6, 7, 6),
    ),
    "depthwise, circular": (lambda: nn.Conv1d(6, 12, 4, groups=6, padding="same", padding_mode="circular"), (6, 9)),
    "depthwise in space": (lambda: nn.Conv3d(4, 4, 2, groups=4, stride=2, padding=1), (4, 4, 5, 4)),
    "many channel groups": (lambda: nn.Conv2d(24, 24, 3, groups=6, stride=2), (24, 7, 6)),
    "convolution in time": (lambda: nn.Conv1d(4, 6, 3, padding=2, dilation=2, groups=2), (4, 9)),
    "convolution in space": (lambda: nn.Conv3d(2, 4, 2, stride=2, padding=1), (2, 4, 5, 4)),
    "transposed convolution": (lambda: nn.ConvTranspose2d(3, 6, 3), (3, 4, 5)),
    "transposed without bias": (lambda: nn.ConvTranspose2d(3, 6, 3, bias=False), (3, 4, 5)),
    "transposed with stride": (
        lambda: nn.ConvTranspose2d(3, 6, (3, 2), stride=(2, 3), padding=1, output_padding=(1, 2)),
        (3, 4, 5),
    ),
    "transposed with groups": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2), (4, 3, 4)),
    "transposed with dilation": (lambda: nn.ConvTranspose2d(3, 6, 3, dilation=3, output_padding=2), (3, 4, 5)),
    "transposed in time": (lambda: nn.ConvTranspose1d(4, 6, 3, padding=1, stride=2, groups=2), (4, 5)),
    "transposed in space": (lambda: nn.ConvTranspose3d(2, 4, 2, stride=2, padding=1), (2, 3, 4, 3)),
    "transposed linear": (lambda: Conv1D(7, 6), (4, 6)),
    "layer norm": (lambda: used(nn.LayerNorm(40)), (3, 40)),
    "layer norm over a grid": (lambda: used(nn.LayerNorm((4, 10))), (3, 4, 10)),
    "layer norm without bias": (lambda: used(nn.LayerNorm(40, bias=False)), (40,)),
    "root mean square norm": (lambda: used(nn.RMSNorm(40)), (3, 40)),
    "group norm": (lambda: used(nn.GroupNorm(4, 40)), (40, 3)),
    "batch norm": (lambda: used(nn.BatchNorm1d(40)), (40,)),
    "batch norm in time": (lambda: used(nn.BatchNorm1d(40)), (40, 3)),
    "batch norm on images": (lambda: used(nn.BatchNorm2d(40)), (40, 3, 2)),
    "batch norm in space": (lambda: used(nn.BatchNorm3d(40)), (40, 2, 2, 2)),
}


def wrapped(layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.no_grad():
        probe = torch.zeros(1, *shape, dtype=dtype)
        width = layer.eval()(probe).numel()
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(width, 5))


def assert_exact(adapter, model, examples, autograd_vectors) -> None:
    for settings in (FeatureSettings(group_dimension=10**6), FeatureSettings(group_dimension=30)):
        plan = plan_features(model, settings)
        assert plan.groups[0].name == "0"
        assert plan.groups[0].exact is (settings.group_dimension > 30)
        found = compute_features(adapter, model, examples, plan).vectors
        expected = autograd_vectors(adapter, model, examples, plan)
        for columns in plan.slices:
            assert expected[:, columns].norm() > 0
            error = (found - expected)[:, columns].norm(dim=1) / expected[:, columns].norm(dim=1)
            assert error.max() < 1e-4
        check_capture(adapter, model, examples, plan)


@pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS)
def test_every_layer_rule_gives_the_gradient_of_autograd(
    build, shape, make_classifier, make_examples, autograd_vectors
):
    torch.manual_seed(0)
    examples = make_examples(4, *shape)
    model = wrapped(build(), shape)
    assert_exact(make_classifier(lambda: model, examples), model, examples, autograd_vectors)


@pytest.mark.parametrize("padding", [None, 3])
def test_embeddings_scatter_by_token_and_leave_padding_out(padding, make_classifier, autograd_vectors):
    class Tokens(make_classifier):
        input_dtype = torch.int64

    generator = torch.Generator().manual_seed(0)
    examples = [Example(str(i), torch.randint(11, (6,), generator=generator), i % 5) for i in range(4)]
    model = wrapped(nn.Embedding(11, 4, padding_idx=padding), (6,), torch.int64)
    with torch.no_grad():
        model[0].weight.normal_()
    assert_exact(Tokens(lambda: model, examples), model, examples, autograd_vectors)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Embedding(5, 3, max_norm=1.0),
        nn.Embedding(5, 3, scale_grad_by_freq=True),
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.LayerNorm(4, elementwise_affine=False),
        nn.MultiheadAttention(4, 2, kdim=3, vdim=3),
        nn.InstanceNorm1d(4, affine=True),
        nn.LSTM(3, 3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_whose_options_or_types_no_rule_is_exact_for_have_none(layer):
    assert find_rule(layer) is None


def test_a_transformer_encoder_is_covered_with_its_attention(make_classifier, make_examples, autograd_vectors):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(48, 5))
    examples = make_examples(6, 4, 12)
    adapter = make_classifier(lambda: model, examples)
    plan = plan_features(model)
    check_determinism(adapter, model, examples)
    check_capture(adapter, model, examples, plan)
    layers = ["0.self_attn", "0.self_attn.out_proj", "0.linear1", "0.linear2", "0.norm1", "0.norm2", "2"]
    assert [group.name for group in plan.groups] == layers
    assert plan.uncovered == ()
    assert torch.backends.mha.get_fastpath_enabled()
    found = compute_features(adapter, model, examples, plan).vectors
    expected = autograd_vectors(adapter, model.eval(), examples, plan)
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-4


def test_a_text_model_with_padding_gives_each_example_the_same_gradient_alone_and_padded(make_classifier):
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.read = nn.Embedding(20, 8), nn.LayerNorm(8), nn.Linear(8, 5)

        def forward(self, tokens: Tensor) -> Tensor:
            mask = (tokens > 0).unsqueeze(2)
            return (self.read(self.norm(self.embed(tokens))) * mask).sum(1)

    class Tokens(make_classifier):
        input_dtype = torch.int64

        def collate(self, examples):
            longest = max(len(example.inputs) for example in examples)
            padded = [Example(e.example_id, e.inputs + [0] * (longest - len(e.inputs)), e.target) for e in examples]
            return super().collate(padded)

    examples = [Example("short", [4, 5], 1), Example("long", [6, 7, 8, 4, 9], 2)]
    adapter = Tokens(Text, examples)
    model = adapter.build_model()
    plan = plan_features(model, FeatureSettings(group_dimension=20))
    check_determinism(adapter, model, examples)
    check_capture(adapter, model, examples, plan)
    together = compute_features(adapter, model, examples, plan).vectors
    alone = compute_features(adapter, model, examples[:1], plan).vectors
    assert torch.allclose(together[:1], alone, rtol=1e-5, atol=1e-7)


class Padded(nn.Module):
    """A linear layer over positions; padding is where the inputs are NaN, and the loss does not depend on it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.read = nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        real = ~inputs.isnan().any(2, keepdim=True)
        hidden = self.norm(self.inner(inputs)).masked_fill(~real, 0)
        return self.read(hidden.tanh()).sum(1)


def test_a_position_mask_keeps_padding_out_of_weight_and_bias(make_classifier, make_examples):
    class Masked(make_classifier):
        def position_mask(self, batch):
            return ~batch.inputs.isnan().any(2)

    whole = make_examples(3, 4, 3)
    padded = [Example(e.example_id, e.inputs.clone(), e.target) for e in whole]
    for example in padded:
        example.inputs[2:] = torch.nan
    adapter = Masked(Padded, padded)
    model = adapter.build_model()
    plan = plan_features(model, FeatureSettings(exclude=("read",)))
    found = compute_features(adapter, model, padded, plan).vectors
    short = [Example(e.example_id, e.inputs[:2], e.target) for e in whole]
    # A padded position reads out the bias of the last layer, which moves the loss.
    constant = 2 * model.read.bias.detach()

    class Shifted(make_classifier):
        def outputs(self, model, batch):
            return super().outputs(model, batch) + constant

    expected = compute_features(Shifted(Padded, short), model, short, plan).vectors
    assert torch.isfinite(found).all()
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-4


def test_a_position_mask_over_positions_that_count_is_refused(make_classifier, make_examples):
    class Masked(make_classifier):
        def position_mask(self, batch):
            return torch.arange(4).expand(len(batch.inputs), 4) < 2

    examples = make_examples(3, 4, 3)
    adapter = Masked(Padded, examples)
    model = adapter.build_model()
    with pytest.raises(ModelError, match="features of layer inner are not its gradient") as caught:
        check_capture(adapter, model, examples, plan_features(model))
    assert "position_mask" in caught.value.remedy
