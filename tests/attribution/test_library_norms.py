"""Norms of timm, torchvision and transformers: measured by rules, as autograd does; here are classes like theirs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradtrail.attribution.adapters.base import ClassificationAdapter
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.gradients.checks import check_capture
from gradtrail.attribution.gradients.forward_passes import prepare
from gradtrail.attribution.gradients.tracked_model import track_model
from gradtrail.nouns import Example


def of_library(module):
    """Give a class the place that the library's own has."""

    def named(kind):
        kind.__module__, kind.__qualname__ = module, kind.__name__
        return kind

    return named


def activated(layer, act, drop=None):
    layer.act, layer.drop = act, drop or nn.Identity()
    return layer


@of_library("timm.layers.norm")
class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = functional.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


@of_library("timm.layers.norm")
class GroupNorm1(nn.GroupNorm):
    def forward(self, x):
        return functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


@of_library("timm.layers.norm")
class LayerNorm(nn.LayerNorm):
    def forward(self, x):
        return functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


@of_library("timm.layers.norm")
class RmsNorm2d(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(channels)), 1e-6

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + self.eps) * self.weight.reshape(1, -1, 1, 1)


@of_library("timm.layers.norm_act")
class BatchNormAct2d(nn.BatchNorm2d):
    def forward(self, x):
        x = functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
        return self.act(self.drop(x))


@of_library("timm.layers.norm_act")
class GroupNormAct(nn.GroupNorm):
    def forward(self, x):
        return self.act(self.drop(functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)))


@of_library("timm.layers.norm_act")
class LayerNormAct2d(nn.LayerNorm):
    def forward(self, x):
        return self.act(self.drop(LayerNorm2d.forward(self, x)))


@of_library("timm.layers.norm_act")
class LayerNormAct(nn.LayerNorm):
    def forward(self, x):
        return self.act(self.drop(LayerNorm.forward(self, x)))


@of_library("timm.layers.norm_act")
class RmsNormAct2d(RmsNorm2d):
    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


@of_library("transformers.models.convnext.modeling_convnext")
class ConvNextLayerNorm(nn.LayerNorm):
    def __init__(self, channels, data_format):
        super().__init__(channels)
        self.data_format = data_format

    def forward(self, features):
        if self.data_format == "channels_first":
            return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return super().forward(features)


@of_library("timm.layers.linear")
class Linear(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight, self.bias)


class Last(nn.Module):
    """A layer over the last dimension, in a model whose channels are the first."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.movedim(1, -1)).movedim(-1, 1)


LAYERS = {
    "layer norm over channels": lambda: LayerNorm2d(6),
    "layer norm": lambda: Last(LayerNorm(6)),
    "one group": lambda: GroupNorm1(1, 6),
    "root mean square over channels": lambda: RmsNorm2d(6),
    "batch norm, relu in place": lambda: activated(BatchNormAct2d(6), nn.ReLU(inplace=True)),
    "batch norm, silu": lambda: activated(BatchNormAct2d(6), nn.SiLU(inplace=True), nn.Dropout(0.5)),
    "batch norm alone": lambda: activated(BatchNormAct2d(6), nn.Identity()),
    "group norm, gelu": lambda: activated(GroupNormAct(3, 6), nn.GELU()),
    "layer norm over channels, hard swish": lambda: activated(LayerNormAct2d(6), nn.Hardswish(inplace=True)),
    "layer norm, tanh": lambda: Last(activated(LayerNormAct(6), nn.Tanh())),
    "root mean square over channels, silu": lambda: activated(RmsNormAct2d(6), nn.SiLU()),
    "channels first": lambda: ConvNextLayerNorm(6, "channels_first"),
    "channels last": lambda: Last(ConvNextLayerNorm(6, "channels_last")),
    "linear": lambda: Last(Linear(6, 6)),
}


class Classifier(ClassificationAdapter):
    input_dtype = torch.float64

    def __init__(self, model, examples):
        self.model, self.examples = model, examples

    def build_model(self):
        return self.model

    def training_data(self):
        return self.examples


def around(layer):
    """The layer between two convolutions, with weights that are no ones and statistics that are no zeros."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 1), layer, nn.Conv2d(6, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
        if name.endswith("bias"):
            nn.init.uniform_(tensor, -1, 1)
    images = torch.randn(5, 2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    examples = [Example(f"e{i}", image, i % 3) for i, image in enumerate(images)]
    return Classifier(model.eval(), examples)


@pytest.mark.parametrize("made", LAYERS.values(), ids=list(LAYERS))
def test_norms_of_libraries_are_measured_by_a_rule_as_autograd_measures_them(made):
    adapter = around(made())
    model, examples = adapter.model, adapter.examples
    plan = plan_features(model, FeatureSettings(group_dimension=10**9, dtype="float64"))
    assert [group.name for group in plan.groups if not group.modules] == []
    tracked = track_model(adapter, model, plan)
    prepare(tracked, examples)
    assert tracked.routes.by_autograd == frozenset()
    assert check_capture(adapter, model, examples, plan) < 1e-9
    found = compute_features(adapter, model, examples, plan).vectors
    wanted = []
    for example in examples:
        loss = functional.cross_entropy(model(example.inputs[None]), torch.tensor([example.target]))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        wanted.append(torch.cat([gradient.flatten() for gradient in gradients]))
    wanted = torch.stack(wanted)
    assert torch.allclose(found @ found.T, wanted @ wanted.T, rtol=1e-9, atol=1e-12)


def test_a_norm_whose_activation_has_weights_of_its_own_has_no_rule_and_is_right_all_the_same():
    adapter = around(activated(BatchNormAct2d(6), nn.PReLU()))
    plan = plan_features(adapter.model)
    assert {"1.weight", "1.bias"} <= {group.name for group in plan.groups}
    assert check_capture(adapter, adapter.model, adapter.examples, plan) < 1e-5


def test_an_activation_that_mixes_entries_is_left_to_autograd():
    class Mixing(nn.Module):
        def forward(self, x):
            return x * x.mean(-1, keepdim=True)

    adapter = around(activated(GroupNormAct(3, 6), Mixing()))
    plan = plan_features(adapter.model)
    with pytest.warns(UserWarning, match="1: measured by autograd"):
        assert check_capture(adapter, adapter.model, adapter.examples, plan) < 1e-5
