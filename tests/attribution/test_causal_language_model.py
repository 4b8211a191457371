import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from gradtrail import CausalLMAdapter, Example
from gradtrail.attribution.curvature.vectors import model_vectors
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import compute_features, iterate_features
from gradtrail.attribution.gradients.checks import check_capture, check_determinism
from gradtrail.errors import DataError, ModelError

VOCABULARY = 31


class PlainModel(nn.Module):
    """Logits from a causal mean, as a tensor."""

    def __init__(self, vocabulary=VOCABULARY):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, vocabulary)

    def forward(self, tokens):
        seen = self.embedding(tokens).cumsum(1) / torch.arange(1, tokens.shape[1] + 1)[None, :, None]
        return self.head(torch.tanh(self.mix(seen)))


class Adapter(CausalLMAdapter):
    context_length = 16

    def __init__(self, build, examples=()):
        self.build, self.examples = build, examples

    def build_model(self):
        return self.build()

    def training_data(self):
        return self.examples


def gpt2(**changes):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = {"vocab_size": VOCABULARY, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**{**config, "bos_token_id": 0, "eos_token_id": 0, **changes})).eval()


def _examples():
    generator = torch.Generator().manual_seed(1)

    def tokens(count):
        return torch.randint(VOCABULARY, (count,), generator=generator).tolist()

    documents = [Example(f"document-{length}", tokens(length), None) for length in (2, 9, 16)]
    return [*documents, *(Example(f"pair-{n}-{m}", tokens(n), tokens(m)) for n, m in ((3, 4), (8, 1), (0, 5)))]


def _expected_loss(model, tokens, counted_from):
    """The sum of −log p over the counted tokens, one after the other."""
    found = 0.0
    for place in range(counted_from, len(tokens)):
        before = torch.tensor([tokens[:place]])
        logits = model(before)
        logits = logits if isinstance(logits, torch.Tensor) else logits.logits
        found = found - functional.log_softmax(logits[0, -1], 0)[tokens[place]]
    return found


@pytest.mark.parametrize("build", [gpt2, PlainModel])
def test_losses_sum_over_continuations_whatever_the_padding(build):
    model, adapter, examples = build(), Adapter(build), _examples()
    batch = adapter.collate(examples)
    with torch.no_grad():
        found = adapter.losses(adapter.outputs(model, batch), batch)
        for row, example in enumerate(examples):
            prompt = len(example.inputs) if example.target is not None else 1
            whole = [*example.inputs, *(example.target or [])]
            assert found[row].item() == pytest.approx(_expected_loss(model, whole, max(1, prompt)).item(), rel=1e-5)
            alone = adapter.collate([example])
            lone = adapter.losses(adapter.outputs(model, alone), alone)
            assert lone.item() == pytest.approx(found[row].item(), rel=1e-5)
            filled = _padded(alone, 5, token=7)
            assert adapter.losses(adapter.outputs(model, filled), filled).item() == pytest.approx(lone.item(), rel=1e-5)


def _padded(batch, most, token):
    width = min(most, 16 - batch.targets.shape[1])
    fills = {"input_ids": token, "position_ids": 15, "attention_mask": 0}
    inputs = {name: functional.pad(tensor, (0, width), value=fills[name]) for name, tensor in batch.inputs.items()}
    return type(batch)(inputs, functional.pad(batch.targets, (0, width), value=-100))


def test_prompts_are_masked_and_positions_aligned():
    batch = Adapter(PlainModel).collate(
        [Example("a", [5, 6, 7], [8, 9]), Example("b", [1, 2], None), Example("c", [], np.array([3, 4, 5]))]
    )
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8], [1, 0, 0, 0], [3, 4, 0, 0]]
    assert batch.targets.tolist() == [[-100, -100, 8, 9], [2, -100, -100, -100], [4, 5, -100, -100]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("dimension", [1 << 20, 24])
def test_features_of_a_gpt2_with_tied_weights_are_autograds_gradients(autograd_vectors, dimension):
    model, adapter, examples = gpt2(), Adapter(gpt2), _examples()
    assert sum(parameter.numel() for parameter in model.parameters()) <= 20_000
    assert model.lm_head.weight is model.transformer.wte.weight
    plan = plan_features(model, FeatureSettings(group_dimension=dimension))
    assert plan.covered_parameters == plan.total_parameters
    check_determinism(adapter, model, examples)
    check_capture(adapter, model, examples, plan)
    rows = list(iterate_features(adapter, model, examples, plan, batch_size=4))
    found = torch.cat([part.vectors for part in rows])
    expected = autograd_vectors(adapter, model, examples, plan)
    if dimension == 1 << 20:
        assert plan.dimension == plan.total_parameters
        totals = torch.stack([_whole_gradient(adapter, model, example).norm() for example in examples])
        torch.testing.assert_close(found.norm(dim=1), totals, rtol=1e-4, atol=0)
    assert ((found - expected).norm(dim=1) <= 1e-4 * expected.norm(dim=1)).all()


def _whole_gradient(adapter, model, example):
    batch = adapter.collate([example])
    loss = adapter.losses(adapter.outputs(model, batch), batch).sum()
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(model.parameters()))])


def test_a_gpt2_in_training_mode_is_measured_without_its_dropout():
    adapter, examples = Adapter(gpt2), _examples()
    model = gpt2(resid_pdrop=0.5, embd_pdrop=0.5)
    plan = plan_features(model)
    still = compute_features(adapter, model.eval(), examples, plan)
    model.train()
    check_determinism(adapter, model, examples)
    again = compute_features(adapter, model, examples, plan)
    assert torch.equal(again.vectors, still.vectors)


def test_sampled_fisher_has_the_mean_of_the_exact_curvature():
    def build():
        torch.manual_seed(0)
        return PlainModel(5)

    examples = [Example("a", [1, 2], [3, 4]), Example("b", [0, 4, 2], None)]
    model, adapter = build(), Adapter(build)
    plan = plan_features(model, FeatureSettings(group_dimension=1 << 20, fallback=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)

    def curvature(kind, copies):
        pieces = model_vectors(adapter, model, examples * copies, plan, kind=kind, batch_size=2 * copies)
        return sum(part.T @ part for _, part in pieces.pieces) / (len(examples) * copies)

    exact = curvature("ggn", 1)
    assert (curvature("fisher", 8000) - exact).norm() < 0.04 * exact.norm()
    batch = adapter.collate(examples)
    drawn = adapter.sample_targets(adapter.outputs(model, batch), batch, torch.Generator().manual_seed(1))
    assert ((drawn.targets == -100) == (batch.targets == -100)).all()


def test_factors_are_those_of_the_hessian_in_the_logits():
    model, adapter = PlainModel(4), Adapter(PlainModel)
    batch = adapter.collate([Example("a", [1], [3, 2])])
    logits = adapter.outputs(model, batch).detach()
    factors = adapter.curvature_factors(logits, batch).flatten(1).double()
    hessian = torch.autograd.functional.hessian(lambda values: adapter.losses(values, batch).sum(), logits.double())
    torch.testing.assert_close(factors.T @ factors, hessian.reshape(8, 8), rtol=1e-5, atol=1e-6)


class Spelled(Adapter):
    def encode(self, text):
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, tokens):
        return "".join(chr(token + ord("a")) for token in tokens)


def test_outputs_are_read_as_text_or_tokens_and_shown_as_text():
    adapter = Spelled(PlainModel)
    record = {"record_id": "r-1", "prompt": "abc", "prediction": "de", "label": [5]}
    emitted, label = adapter.output_to_example(record), adapter.output_to_example(record, "label")
    assert (emitted.example_id, emitted.inputs, emitted.target, label.target) == ("r-1", "abc", "de", [5])
    assert adapter.collate([emitted]).targets.tolist() == [[-100, -100, 3, 4]]
    assert adapter.preview(emitted).text == "abc ⟶ de"
    assert adapter.preview(Example("d", [0, 1, 2], None)).text == "abc"
    assert adapter.target_text([1, 2]) == adapter.target_text("bc") == "bc"
    assert Adapter(PlainModel).preview(Example("d", [], torch.tensor([4, 1]))).text == "4 1"
    assert adapter.output_to_example({"inputs": [1], "completion": [2], "prediction": "x"}).target == [2]
    assert "raises the probability of the continuation" in adapter.meaning_of_scores
    with pytest.raises(DataError, match="record r-2 has no field 'inputs'"):
        adapter.output_to_example({"record_id": "r-2", "prediction": "de"})


def test_greedy_outputs_reproduce_and_sampled_ones_must_be_plausible():
    adapter = Spelled(PlainModel)
    batch = adapter.collate([Example("a", "ab", "cd"), Example("b", "ab", "cd"), Example("c", "a", "e")])
    logits = torch.zeros(3, 3, 9)
    logits[0, 1, 2] = logits[0, 2, 3] = logits[1, 1, 2] = logits[1, 2, 7] = 5
    logits[2, 0, 4] = -20
    assert adapter.emitted(logits, batch) == ["cd", "ch", "a"]
    assert adapter.reproduced(logits, batch) == [True, False, False]

    class Drawn(Spelled):
        sampled = True

    assert Drawn(PlainModel).reproduced(logits, batch) == [True, True, False]


def test_what_is_no_sequence_of_tokens_is_refused():
    adapter, model = Adapter(PlainModel), PlainModel()
    for example, message in (
        (Example("x", [3], None), "Example x has 1 tokens and none to predict"),
        (Example("x", [3, 4], []), "Example x has 2 tokens and none to predict"),
        (Example("x", [], [4]), "Example x has 1 tokens and none to predict"),
        (Example("x", list(range(18)), None), "Example x has 18 tokens, but the model reads 16"),
        (Example("x", [1.5, 2], None), "inputs of example x is no sequence of tokens"),
        (Example("x", [1], [-1]), "target of example x is no sequence of tokens: shape .* smallest -1"),
        (Example("x", "text", None), "Adapter cannot read the text 'text': it has no tokeniser"),
    ):
        with pytest.raises(DataError, match=message):
            adapter.collate([Example("fine", [1, 2], None), example])
    with pytest.raises(DataError, match="without examples"):
        adapter.collate([])
    batch = adapter.collate([Example("x", [1, 40, 2], None)])
    with pytest.raises(DataError, match="cannot read tokens up to 40 in a sequence of 2"):
        adapter.outputs(model, batch)
    batch = adapter.collate([Example("x", [1, 40], None)])
    with pytest.raises(DataError, match="A target is token 40, but the model has 31"):
        adapter.losses(adapter.outputs(model, batch), batch)
    with pytest.raises(ModelError, match=r"returns \(1, 31\), where logits"):
        adapter.outputs(_Last(model), batch)
    with pytest.raises(ModelError, match="returns a dict without a tensor"):
        adapter.outputs(_Wrapped(model), batch)
    with pytest.raises(ModelError, match="where logits"):
        adapter.losses(torch.zeros(1, 31), batch)
    with pytest.raises(ModelError, match="Choose curvature fisher"):
        adapter.curvature_factors(torch.zeros(8, 64, 1000), batch)


class _Last(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens)[:, -1]


class _Wrapped(_Last):
    def forward(self, tokens):
        return {"said": "nothing", "tokens": len(tokens)}
