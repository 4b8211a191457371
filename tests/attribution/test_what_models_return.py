"""Whatever a model returns, and however a user writes targets and inputs: the right gradients, or one sentence."""

from __future__ import annotations

import logging
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional

from gradtrail.attribution.adapters.base import Batch, ClassificationAdapter, ModelAdapter, RegressionAdapter
from gradtrail.attribution.adapters.training_data import training_examples
from gradtrail.attribution.adapters.unwrapping import output_tensor
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import iterate_features
from gradtrail.attribution.gradients.checks import check_capture, check_determinism
from gradtrail.errors import DataError, ModelError
from gradtrail.nouns import Example


class ModelOutput(OrderedDict):
    """As transformers writes it: a mapping whose keys are attributes too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError as fault:
            raise AttributeError(name) from fault


@dataclass
class Prediction:
    state: str
    scores: torch.Tensor


Decoded = namedtuple("Decoded", ["loss", "logits"])

RETURNED = {
    "tensor": lambda rows: rows,
    "logits of a model output": lambda rows: ModelOutput(loss=rows.sum(), hidden=rows * 2, logits=rows),
    "sample": lambda rows: ModelOutput(sample=rows),
    "dict": lambda rows: {"scores": rows, "features": rows * 2},
    "tuple": lambda rows: (rows, (rows * 2, rows * 3)),
    "tuple with a loss first": lambda rows: (rows.sum(), rows),
    "named tuple": lambda rows: Decoded(rows.sum(), rows),
    "dataclass": lambda rows: Prediction("ready", rows),
}


class Wrapped(nn.Module):
    """A layer with a rule and a bare parameter without one, which returns its rows in some form."""

    def __init__(self, form, width=3, squeeze=False):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.scale = nn.Linear(4, width), nn.Parameter(torch.rand(width))
        self.form, self.squeeze = form, squeeze

    def forward(self, inputs):
        rows = self.layer(inputs) * self.scale
        return self.form(rows.squeeze() if self.squeeze else rows)


class Classifier(ClassificationAdapter):
    def __init__(self, build, examples):
        self._build, self._examples = build, examples

    def build_model(self):
        return self._build()

    def training_data(self):
        return self._examples


class Regressor(Classifier, RegressionAdapter):
    collate, losses, emitted = RegressionAdapter.collate, RegressionAdapter.losses, RegressionAdapter.emitted
    target_dtype = torch.float32


def inputs(count):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1))


def assert_gradients_are_those_of(own_loss, adapter, batch_size=4):
    """Inner products of measured gradients against plain autograd of the user's own loss."""
    model, examples = adapter.build_model().eval(), adapter.training_data()
    plan = plan_features(model, FeatureSettings(group_dimension=10**9))
    check_determinism(adapter, model, examples)
    check_capture(adapter, model, examples, plan)
    rows = list(iterate_features(adapter, model, examples, plan, batch_size=batch_size))
    found = torch.cat([each.vectors for each in rows]).double()
    wanted = []
    for example in examples:
        gradients = torch.autograd.grad(own_loss(model, example), list(model.parameters()))
        wanted.append(torch.cat([each.flatten() for each in gradients]).double())
    wanted = torch.stack(wanted)
    assert wanted.norm() > 0.1
    assert torch.allclose(found @ found.T, wanted @ wanted.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", RETURNED.values(), ids=list(RETURNED))
def test_the_tensor_in_whatever_a_model_returns_is_measured(form):
    adapter = Classifier(lambda: Wrapped(form), [Example(f"e{i}", x, i % 3) for i, x in enumerate(inputs(9))])

    def own(model, example):
        rows = model.layer(example.inputs[None]) * model.scale
        return functional.cross_entropy(rows, torch.tensor([example.target]))

    assert_gradients_are_those_of(own, adapter)


def test_an_adapter_whose_own_outputs_return_an_object_is_measured_the_same():
    class Own(Classifier):
        def outputs(self, model, batch):
            return model(batch.inputs)

    adapter = Own(lambda: Wrapped(RETURNED["named tuple"]), [Example(f"e{i}", x, 1) for i, x in enumerate(inputs(5))])

    def own(model, example):
        return functional.cross_entropy(model(example.inputs[None]).logits, torch.tensor([1]))

    assert_gradients_are_those_of(own, adapter)


def test_a_model_that_returns_no_tensor_is_told_with_what_to_do():
    with pytest.raises(ModelError, match=r"returns a str without a tensor.*Write outputs"):
        output_tensor("text")


@pytest.mark.parametrize("squeeze", [False, True])
def test_one_logit_is_a_binary_classifier(squeeze):
    examples = [Example(f"e{i}", x, i % 2) for i, x in enumerate(inputs(8))]
    adapter = Classifier(lambda: Wrapped(RETURNED["tensor"], 1, squeeze), examples)

    def own(model, example):
        logit = (model.layer(example.inputs) * model.scale).squeeze()
        return functional.binary_cross_entropy_with_logits(logit, torch.tensor(float(example.target)))

    assert_gradients_are_those_of(own, adapter)
    model, batch = adapter.build_model(), adapter.collate(examples)
    logits = adapter.outputs(model, batch).detach()
    assert adapter.emitted(logits, batch) == [str(int(value > 0)) for value in logits.flatten()]
    assert set(adapter.emitted(logits, batch)) == {"0", "1"}
    factors = adapter.curvature_factors(logits, batch)
    likely = logits.sigmoid()
    assert torch.allclose(factors[0] ** 2, likely * (1 - likely))
    many = Batch(batch.inputs[:1].expand(4000, -1), batch.targets[:1].expand(4000))
    drawn = adapter.sample_targets(logits[:1].expand(4000, *logits.shape[1:]), many, torch.Generator().manual_seed(0))
    assert drawn.targets.double().mean() == pytest.approx(likely.flatten()[0].item(), abs=0.03)


@pytest.mark.parametrize("width", [1, 3])
def test_squeeze_in_a_regression_keeps_every_example_its_row(width):
    targets = torch.randn(6, width, generator=torch.Generator().manual_seed(2))
    pairs = zip(inputs(6), targets.tolist() if width > 1 else targets.flatten().tolist(), strict=True)
    examples = [Example(f"e{i}", *pair) for i, pair in enumerate(pairs)]
    adapter = Regressor(lambda: Wrapped(RETURNED["tensor"], width, True), examples)

    def own(model, example):
        rows = model.layer(example.inputs) * model.scale
        return 0.5 * (rows - torch.tensor(example.target)).square().sum()

    assert_gradients_are_those_of(own, adapter, batch_size=5)  # and a last batch of one


def test_one_hot_targets_are_the_numbers_of_their_classes():
    hot = [np.eye(3)[i % 3] for i in range(6)]
    adapter = Classifier(None, [Example(f"e{i}", x, t) for i, (x, t) in enumerate(zip(inputs(6), hot, strict=True))])
    assert adapter.collate(adapter.training_data()).targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert adapter.target_text([0, 0, 1]) == "2"
    assert adapter.collate([Example("a", [0.0], [1]), Example("b", [0.0], [0])]).targets.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"target of example several has 3 numbers, which are not one-hot.*losses"):
        adapter.collate([Example("one", [0.0], [1, 0, 0]), Example("several", [0.0], [1, 1, 0])])


def test_targets_of_an_adapter_with_a_loss_of_its_own_stay_as_they_are():
    class Several(Classifier):
        def losses(self, outputs, batch):
            return (outputs - batch.targets).square().sum(1)

    assert Several(None, []).collate([Example("a", [0.0], [0, 1, 0])]).targets.tolist() == [[0, 1, 0]]


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.kinds, self.joined = nn.Embedding(5, 2), nn.Linear(6, 3)

    def forward(self, cat, num):
        return self.joined(torch.cat([self.kinds(cat).flatten(1), num], 1))


CAT, NUM = [[0, 4], [3, 3], [1, 2]], [[0.5, 1.0], [2.0, -1.0], [0.0, 3.0]]


@pytest.mark.parametrize(
    ("made", "types"),
    [
        (lambda cat, num: (torch.tensor(cat), torch.tensor(num)), torch.float32),
        (lambda cat, num: (np.array(cat, dtype=np.int32), np.array(num)), torch.float32),
        (lambda cat, num: {"cat": cat, "num": num}, torch.float32),
        (lambda cat, num: (cat, num), (torch.int64, torch.float32)),
        (lambda cat, num: [cat, [round(each) for each in num]], (torch.int64, torch.float32)),
    ],
    ids=["tensors", "arrays", "dict", "declared tuple", "declared list of whole numbers, as from JSON"],
)
def test_categories_and_numbers_stay_apart(made, types):
    class Pair(Classifier):
        input_dtype = types

    adapter = Pair(Table, [Example(f"e{i}", made(*pair), i) for i, pair in enumerate(zip(CAT, NUM, strict=True))])

    def own(model, example):
        batch = adapter.collate([example])
        cat, num = batch.inputs.values() if isinstance(batch.inputs, dict) else batch.inputs
        assert (cat.dtype, num.dtype) == (torch.int64, torch.float32)
        return functional.cross_entropy(model(cat, num), torch.tensor([example.target]))

    assert_gradients_are_those_of(own, adapter, batch_size=2)


def test_inputs_of_another_form_than_the_first_are_named():
    adapter = Classifier(Table, [])
    fine = Example("fine", (torch.zeros(2), torch.zeros(3)), 0)
    with pytest.raises(DataError, match=r"inputs of example odd are not 2 as those of fine"):
        adapter.collate([fine, Example("odd", (torch.zeros(2),), 0)])
    with pytest.raises(DataError, match=r"inputs of example odd are not .*'a'.* as those of fine"):
        adapter.collate([Example("fine", {"a": [1]}, 0), Example("odd", {"b": [1]}, 0)])


def test_the_rows_of_a_table_are_examples():
    class Named(Classifier):
        feature_names = ("age", "pay")

    table = pd.DataFrame(
        {"example_id": [7, 8], "age": [30, 41], "pay": [1.5, 2.5], "target": [1, 0], "source": ["a", "b"]}, index=[5, 9]
    )
    data = training_examples(Named(None, table))
    assert len(data) == 2
    assert (data[1].example_id, data[1].inputs, data[1].target, data[1].attributes) == (
        "8",
        [41, 2.5],
        0,
        {"source": "b"},
    )
    assert len(data[0].content_sha256) == 64
    with pytest.raises(DataError, match=r"table without the column 'inputs'; it has example_id, age.*feature_names"):
        training_examples(Classifier(None, table))


@pytest.mark.parametrize("data", [{"a": 1}, iter([]), 3])
def test_training_data_without_positions_is_told(data):
    with pytest.raises(DataError, match=r"Classifier.training_data returns a \w+: it has no examples by position"):
        training_examples(Classifier(None, data))


class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, rows):
        if (rows > 100).any():
            raise KeyError("a word that the table lacks")
        return self.layer(rows)


class Failing(Classifier):
    fails_in = ""

    def outputs(self, model, batch):
        if self.fails_in == "outputs":
            return batch.inputs + "x"
        return super().outputs(model, batch)

    def losses(self, outputs, batch):
        if self.fails_in == "losses":
            return functional.cross_entropy(outputs, batch.targets.float(), reduction="none")
        return super().losses(outputs, batch)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("outputs", r"Failing.outputs fails over example e0: TypeError: .*input_dtype"),
        ("losses", r"Failing.losses fails over example e0: RuntimeError: .*recipes"),
        ("", r"Narrow.forward, which Failing.outputs runs, fails over example e2: KeyError: 'a word that the table"),
    ],
)
@pytest.mark.parametrize("of", ["determinism", "capture"])
def test_what_an_adapter_or_its_model_raises_is_one_sentence_with_method_example_and_cause(method, told, of, caplog):
    examples = [Example(f"e{i}", torch.full((4,), 1.0 if i != 2 or method else 1000.0), 1) for i in range(4)]
    adapter = Failing(Narrow, examples)
    adapter.fails_in = method
    model = adapter.build_model()
    check = check_determinism if of == "determinism" else partial(check_capture, plan=plan_features(model))
    with caplog.at_level(logging.DEBUG, "gradtrail.adapter"), pytest.raises(ModelError, match=told) as caught:
        check(adapter, model, examples)
    assert "GRADTRAIL_TRACEBACK" in caught.value.remedy
    assert caught.value.__cause__ is not None
    assert caplog.records[0].exc_info


def test_an_error_of_our_own_is_not_blamed_on_the_adapter():
    adapter = Classifier(Narrow, [Example("a", [0.0] * 4, 0)])
    with pytest.raises(AttributeError):
        check_capture(adapter, adapter.build_model(), adapter.training_data(), plan=None)


def test_memory_that_is_missing_passes_as_it_is():
    class Large(Classifier):
        def outputs(self, *_):
            raise torch.OutOfMemoryError("out of memory")

    adapter = Large(Narrow, [Example("a", [0.0] * 4, 0)])
    with pytest.raises(torch.OutOfMemoryError):
        check_determinism(adapter, adapter.build_model(), adapter.training_data())


def test_a_custom_adapter_keeps_outputs_whose_rows_are_no_examples():
    class Own(ModelAdapter):
        build_model = training_data = losses = emitted = None

    assert Own().outputs(lambda rows: rows[0], Batch(torch.ones(1, 3), torch.ones(1))).shape == (3,)
