from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import check_determinism, compute_features
from gradtrail.attribution.gradients.checks import check_capture
from gradtrail.errors import ModelError
from gradtrail.nouns import Example


class TinyLanguageModel(nn.Module):
    """The head shares the embedding's weight, as in GPT-2."""

    def __init__(self, *, head_bias: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4, padding_idx=0)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 11, bias=head_bias)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(tokens)).tanh()).sum(1)[:, :5]


@pytest.mark.parametrize("dimension", [20, 10**6])
@pytest.mark.parametrize("head_bias", [False, True], ids=["by rule", "by fallback"])
def test_a_head_tied_to_the_embedding_adds_up_with_it(head_bias, dimension, make_classifier, autograd_vectors):
    class Tokens(make_classifier):
        input_dtype = torch.int64

    torch.manual_seed(0)
    examples = [Example(str(i), torch.randint(11, (6,)), i % 5) for i in range(4)]
    adapter = Tokens(lambda: TinyLanguageModel(head_bias=head_bias), examples)
    model = adapter.build_model()
    plan = plan_features(model, FeatureSettings(group_dimension=dimension))
    modules = [group.modules for group in plan.groups]
    assert modules == ([("mix",), (), ()] if head_bias else [("embed", "head"), ("mix",)])
    assert plan.uncovered == ()
    found = compute_features(adapter, model, examples, plan).vectors
    expected = autograd_vectors(adapter, model, examples, plan)
    for columns in plan.slices:
        error = (found - expected)[:, columns].norm(dim=1) / expected[:, columns].norm(dim=1)
        assert error.max() < 1e-4
    check_capture(adapter, model, examples, plan)


def test_an_autoencoder_that_shares_kernels_both_ways_adds_up(make_classifier, make_examples, autograd_vectors):
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Conv1d(4, 6, 3, groups=2, bias=False)
            self.decode = nn.ConvTranspose1d(6, 4, 3, groups=2, bias=False)
            self.decode.weight = self.encode.weight
            self.read = nn.Linear(4, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.read(self.decode(self.encode(inputs).tanh()).mean(2))

    examples = make_examples(4, 4, 7)
    adapter = make_classifier(Autoencoder, examples)
    model = adapter.build_model()
    for dimension in (20, 10**6):
        plan = plan_features(model, FeatureSettings(group_dimension=dimension))
        assert plan.groups[0].modules == ("encode", "decode")
        found = compute_features(adapter, model, examples, plan).vectors
        expected = autograd_vectors(adapter, model, examples, plan)
        assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-4


class Checkpointed(nn.Module):
    """Two segments that are computed again when backward passes; the first may see inputs outside any graph."""

    def __init__(self, *, reentrant: bool, leading: bool, recurrent: bool) -> None:
        super().__init__()
        self.lead = nn.Linear(6, 6) if leading else nn.Identity()
        self.inner, self.norm, self.other = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6)
        self.last = nn.GRU(6, 5, batch_first=True) if recurrent else nn.Linear(6, 5)
        self.reentrant = reentrant

    def first(self, hidden: Tensor) -> Tensor:
        return hidden + self.other(self.norm(self.inner(hidden)).relu_())

    def second(self, hidden: Tensor) -> Tensor:
        found = self.last(self.inner(hidden).tanh())
        return found[0] if isinstance(found, tuple) else found

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.lead(inputs)
        for segment in (self.first, self.second):
            hidden = checkpoint(segment, hidden, use_reentrant=self.reentrant)
        return hidden.sum(1)


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("leading", [False, True], ids=["first segment on inputs", "a layer before"])
@pytest.mark.parametrize("recurrent", [False, True], ids=["rules only", "with fallback"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad", "ignore:.*one example at a time")
def test_gradient_checkpointing_changes_no_feature(reentrant, leading, recurrent, make_classifier, make_examples):
    torch.manual_seed(0)
    examples = make_examples(4, 3, 6)
    model = Checkpointed(reentrant=reentrant, leading=leading, recurrent=recurrent)
    adapter = make_classifier(lambda: model, examples)
    plan = plan_features(model, FeatureSettings(group_dimension=30))
    check_determinism(adapter, model, examples)
    check_capture(adapter, model, examples, plan)
    found = compute_features(adapter, model, examples, plan).vectors
    for row, example in enumerate(examples):
        model.reentrant = False
        alone = compute_features(adapter, model, [example], plan).vectors
        assert torch.allclose(alone[0], found[row], rtol=1e-4, atol=1e-6)
    model.reentrant = reentrant


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointed_features_are_those_of_autograd(reentrant, make_classifier, make_examples, autograd_vectors):
    torch.manual_seed(0)
    examples = make_examples(4, 3, 6)
    model = Checkpointed(reentrant=reentrant, leading=False, recurrent=False)
    adapter = make_classifier(lambda: model, examples)
    plan = plan_features(model, FeatureSettings(group_dimension=30))
    found = compute_features(adapter, model, examples, plan).vectors
    model.reentrant = False
    expected = autograd_vectors(adapter, model.eval(), examples, plan)
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-4


def test_a_layer_under_no_grad_is_refused_and_not_taken_for_checkpointed(make_classifier, make_examples):
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            with torch.no_grad():
                hidden = self.inner(inputs)
            return self.outer(hidden)

    examples = make_examples(4, 6)
    adapter = make_classifier(Partly, examples)
    model = adapter.build_model()
    with pytest.raises(ModelError, match="Layer inner ran without a graph"):
        compute_features(adapter, model, examples, plan_features(model))


def test_leaves_of_the_graph_keep_no_gradient_between_passes(make_classifier, make_examples):
    examples = make_examples(4, 3, 6)
    model = Checkpointed(reentrant=True, leading=True, recurrent=False)
    adapter = make_classifier(lambda: model, examples)
    plan = plan_features(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = compute_features(adapter, model, examples, plan).vectors
        assert torch.equal(first, compute_features(adapter, model, examples, plan).vectors)
    assert all(parameter.grad is None for parameter in model.parameters())
