from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.gradients.checks import check_capture
from gradtrail.errors import ModelError
from gradtrail.nouns import Example


class Attending(nn.Module):
    """Self- or cross-attention over sequences, with a padding mask and a causal mask."""

    def __init__(self, *, cross: bool = False, batch_first: bool = True, masked: bool = False, **options) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(6, 2, batch_first=batch_first, **options)
        self.read = nn.Linear(6, 5)
        self.context = options.get("kdim", 6)
        self.cross, self.masked = cross, masked
        for bias in (self.attend.in_proj_bias, self.attend.out_proj.bias):
            if bias is not None:
                nn.init.normal_(bias)

    def forward(self, inputs: Tensor) -> Tensor:
        # Padding is where the first feature is exactly zero.
        padding = inputs[..., 0] == 0 if self.masked else None
        ahead = torch.ones(5, 5, dtype=torch.bool).triu(1) if self.masked and not self.cross else None
        other = torch.sin(inputs.flip(1))[..., : self.context] if self.cross else inputs
        turned = [part if self.attend.batch_first else part.transpose(0, 1) for part in (inputs, other)]
        query, context = (turned[0], turned[0]) if not self.cross else turned
        attended, _ = self.attend(query, context, context, padding, False, ahead)
        if not self.attend.batch_first:
            attended = attended.transpose(0, 1)
        return self.read(attended.tanh()).sum(1)


VARIANTS = {
    "self": {},
    "batch second": {"batch_first": False},
    "without bias": {"bias": False},
    "masked": {"masked": True},
    "masked, batch second": {"masked": True, "batch_first": False},
    "cross": {"cross": True},
    "cross, masked, batch second": {"cross": True, "masked": True, "batch_first": False},
    "cross with other widths": {"cross": True, "kdim": 3, "vdim": 3},
    "appended biases and zeros": {"add_bias_kv": True, "add_zero_attn": True},
}


def padded_examples(make_examples) -> list[Example]:
    examples = make_examples(4, 5, 6)
    for position, example in enumerate(examples):
        example.inputs[5 - position % 3 :] = 0
    return examples


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dimension", [30, 10**6])
def test_attention_gives_the_gradient_of_autograd(options, dimension, make_classifier, make_examples, autograd_vectors):
    torch.manual_seed(0)
    examples = padded_examples(make_examples)
    adapter = make_classifier(lambda: Attending(**options), examples)
    model = adapter.build_model()
    plan = plan_features(model, FeatureSettings(group_dimension=dimension))
    assert plan.uncovered == ()
    packed = [group.name for group in plan.groups if group.modules]
    assert packed == ["read"] if "kdim" in options else ["attend", "attend.out_proj", "read"]
    found = compute_features(adapter, model, examples, plan).vectors
    expected = autograd_vectors(adapter, model.eval(), examples, plan)
    for columns in plan.slices:
        assert expected[:, columns].norm() > 0
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-4
    check_capture(adapter, model, examples, plan)
    assert "forward" not in vars(model.attend)


def test_the_weights_of_attention_are_returned_as_torch_returns_them(make_classifier, make_examples):
    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.read = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(25, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.read(self.attend(inputs, inputs, inputs, average_attn_weights=True)[1].flatten(1))

    examples = make_examples(3, 5, 6)
    adapter = make_classifier(Weights, examples)
    model = adapter.build_model()
    losses = compute_features(adapter, model, examples, plan_features(model)).losses
    batch = adapter.collate(examples)
    assert torch.allclose(losses, adapter.losses(model(batch.inputs), batch).double(), rtol=1e-5)


@pytest.mark.parametrize("exclude", ["attend", "attend.out_proj"])
def test_either_projection_of_attention_can_be_left_out(exclude, make_classifier, make_examples):
    examples = make_examples(3, 5, 6)
    adapter = make_classifier(Attending, examples)
    model = adapter.build_model()
    plan = plan_features(model, FeatureSettings(exclude=(exclude,)))
    check_capture(adapter, model, examples, plan)
    assert len(plan.uncovered) == 2


def test_attention_is_put_together_again_after_a_failure(make_classifier, make_examples):
    class Flattening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.read = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            rows = inputs.reshape(1, -1, 6)
            return self.read(self.attend(rows, rows, rows)[0].reshape(len(inputs), -1, 6).sum(1))

    examples = make_examples(3, 5, 6)
    adapter = make_classifier(Flattening, examples)
    model = adapter.build_model()
    with pytest.raises(ModelError, match="input of layer attend has shape"):
        compute_features(adapter, model, examples, plan_features(model, FeatureSettings(fallback=False)))
    assert "forward" not in vars(model.attend)


class EncoderDecoder(nn.Module):
    """torch's own transformer: stacked layers, padding and causal masks, attention from one side to the other."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.2, batch_first=True, norm_first=True)
        self.encode = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(6), enable_nested_tensor=False)
        self.decode = nn.TransformerDecoderLayer(6, 2, 12, dropout=0.2, batch_first=True)
        self.read = nn.Linear(6, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        padding = inputs[..., 0] == 0
        memory = self.encode(inputs, src_key_padding_mask=padding)
        ahead = nn.Transformer.generate_square_subsequent_mask(5)
        decoded = self.decode(inputs, memory, tgt_mask=ahead, memory_key_padding_mask=padding, tgt_is_causal=True)
        return self.read(decoded).sum(1)


def test_a_whole_transformer_is_measured_by_rules_alone(make_classifier, make_examples, autograd_vectors):
    torch.manual_seed(0)
    examples = padded_examples(make_examples)
    adapter = make_classifier(EncoderDecoder, examples)
    model = adapter.build_model().train()
    plan = plan_features(model, FeatureSettings(group_dimension=30))
    assert plan.uncovered == ()
    assert all(group.modules for group in plan.groups)
    found = compute_features(adapter, model, examples, plan).vectors
    assert model.training
    check_capture(adapter, model, examples, plan)
    expected = autograd_vectors(adapter, model.eval(), examples, plan)
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-4


def test_layers_called_several_times_add_up(make_classifier, make_examples, autograd_vectors):
    class Repeating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(6, 2, batch_first=True)
            self.widen = nn.ConvTranspose1d(5, 5, 3, padding=1)
            self.read = nn.Linear(6, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = inputs
            for _ in range(3):
                hidden = self.widen(hidden + self.attend(hidden, hidden, hidden)[0]).tanh()
            return self.read(hidden.sum(1))

    examples = make_examples(4, 5, 6)
    adapter = make_classifier(Repeating, examples)
    model = adapter.build_model()
    for dimension in (30, 10**6):
        plan = plan_features(model, FeatureSettings(group_dimension=dimension))
        found = compute_features(adapter, model, examples, plan).vectors
        expected = autograd_vectors(adapter, model, examples, plan)
        assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-4
