"""The losses in docs/recipes.md, against autograd of the loss that a training would use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from gradtrail.attribution.adapters.base import ModelAdapter
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import iterate_features
from gradtrail.attribution.gradients.checks import check_capture, check_determinism
from gradtrail.errors import ModelError
from gradtrail.nouns import Example

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text()
RECIPES = dict(re.findall(r"<!-- recipe: ([\w ]+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


def written(recipe, *made):
    """What a recipe defines: its only class as an adapter of a model and examples, or its only function."""
    defined: dict[str, object] = {}
    exec(compile(RECIPES[recipe], f"docs/recipes.md: {recipe}", "exec"), defined)  # noqa: S102 (the page as it is)
    names = re.findall(r"^(?:class|def) (\w+)", RECIPES[recipe], re.MULTILINE)
    found = defined[names[-1]]
    if not made:
        return found
    model, examples = made
    return type(found.__name__, (found,), {"build_model": lambda _: model, "training_data": lambda _: examples})()


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def perceptron(classes=3):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, classes))


def class_weights():
    examples = [Example(f"e{i}", x, i % 3) for i, x in enumerate(numbers(7, 4))]

    def training_loss(model, part):
        rows, targets = model(torch.stack([each.inputs for each in part])), torch.tensor([e.target for e in part])
        weights = torch.tensor([1.0, 100.0, 5.0])
        return nn.CrossEntropyLoss(weight=weights)(rows, targets) * weights[targets].sum()

    return perceptron(), examples, training_loss


def label_smoothing():
    examples = [Example(f"e{i}", x, i % 3) for i, x in enumerate(numbers(7, 4))]

    def training_loss(model, part):
        rows, targets = model(torch.stack([each.inputs for each in part])), torch.tensor([e.target for e in part])
        return nn.CrossEntropyLoss(label_smoothing=0.1)(rows, targets) * len(part)

    return perceptron(), examples, training_loss


def several_labels():
    labels = [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]
    examples = [Example(f"e{i}", x, label) for i, (x, label) in enumerate(zip(numbers(4, 4), labels, strict=True))]

    def training_loss(model, part):
        rows = model(torch.stack([each.inputs for each in part]))
        return nn.BCEWithLogitsLoss()(rows, torch.tensor([e.target for e in part]).float()) * len(part)

    return perceptron(), examples, training_loss


def token_tagging():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Embedding(11, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    tags = [[0, 1, 2, 0], [1, -100, -100, -100], [2, 2, 0, -100]]
    words = torch.randint(11, (3, 4), generator=torch.Generator().manual_seed(3))
    examples = [Example(f"e{i}", *pair) for i, pair in enumerate(zip(words, tags, strict=True))]

    def training_loss(model, part):
        rows = model(torch.stack([each.inputs for each in part])).reshape(-1, 3)
        targets = torch.tensor([e.target for e in part]).flatten()
        return nn.CrossEntropyLoss()(rows, targets) * (targets != -100).sum()

    return model, examples, training_loss


def triplet():
    parts = ("anchor", "positive", "negative")
    examples = [Example(f"e{i}", dict(zip(parts, rows, strict=True)), 0) for i, rows in enumerate(numbers(5, 3, 4))]

    def training_loss(model, part):
        embedded = [model(torch.stack([each.inputs[name] for each in part])) for name in parts]
        return nn.TripletMarginLoss(margin=1.0)(*embedded) * len(part)

    return perceptron(), examples, training_loss


@pytest.mark.parametrize("made", [class_weights, label_smoothing, several_labels, token_tagging, triplet])
def test_gradients_of_a_recipe_are_those_of_the_training_loss(made):
    model, examples, training_loss = made()
    adapter = written(made.__name__.replace("_", " "), model, examples)
    plan = plan_features(model, FeatureSettings(group_dimension=10**9))
    check_determinism(adapter, model, examples)
    check_capture(adapter, model, examples, plan)
    measured = torch.cat([each.vectors for each in iterate_features(adapter, model, examples, plan, batch_size=3)])
    measured = measured.double()

    def own(part):
        gradients = torch.autograd.grad(training_loss(model, part), list(model.parameters()), allow_unused=True)
        return torch.cat([each.flatten() for each in gradients]).double()

    alone = torch.stack([own([example]) for example in examples])
    assert alone.norm() > 0.1
    assert torch.allclose(measured @ measured.T, alone @ alone.T, rtol=1e-5, atol=1e-6)
    whole = own(examples)
    assert torch.allclose(alone.sum(0), whole, rtol=1e-4, atol=1e-5)
    batch = adapter.collate(examples)
    said = adapter.emitted(adapter.outputs(model, batch), batch)
    assert all(isinstance(text, str) for text in (*said, *map(adapter.target_text, (e.target for e in examples))))


def test_labels_are_drawn_from_the_model():
    model, examples, _ = several_labels()
    adapter = written("several labels", model, examples)
    batch = adapter.collate([examples[0]] * 3000)
    outputs = adapter.outputs(model, batch)
    drawn = adapter.sample_targets(outputs, batch, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.targets.mean(0), outputs[0].sigmoid(), atol=0.03)


@pytest.mark.parametrize("micro_batch", [1, 2, 7])
def test_accumulated_micro_batches_leave_the_mean_of_the_gradients_of_examples(micro_batch):
    model, examples, training_loss = label_smoothing()
    adapter = written("label smoothing", model, examples)
    written("accumulation")(adapter, model, examples, micro_batch)
    wanted = torch.autograd.grad(training_loss(model, examples) / len(examples), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_negatives_from_the_batch_are_refused_as_the_page_says():
    class Contrastive(ModelAdapter):
        build_model = training_data = emitted = None

        def outputs(self, model, batch):
            return torch.stack([model(batch.inputs["left"]), model(batch.inputs["right"])], dim=1)

        def losses(self, outputs, batch):  # noqa: ARG002 (the interface)
            left, right = nn.functional.normalize(outputs, dim=2).unbind(1)
            return nn.functional.cross_entropy(left @ right.T / 0.1, torch.arange(len(left)), reduction="none")

    pairs = [Example(f"e{i}", {"left": rows[0], "right": rows[1]}, 0) for i, rows in enumerate(numbers(6, 2, 4))]
    with pytest.raises(ModelError, match=r"in-batch negatives.*docs/recipes.md"):
        check_determinism(Contrastive(), perceptron(), pairs)


def test_every_recipe_is_tried():
    assert set(RECIPES) == {
        "class weights", "label smoothing", "several labels", "token tagging", "triplet", "accumulation"
    }  # fmt: skip
