import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradtrail.attribution.adapters.base import ClassificationAdapter
from gradtrail.attribution.curvature.spectrum import Spectrum
from gradtrail.attribution.curvature.vectors import observed_vectors
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.fidelity.effects import Effects
from gradtrail.attribution.fidelity.further_training import random_halves
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.nouns import Example

PAGE = (Path(__file__).parents[2] / "docs" / "attribution.md").read_text("utf-8")
SECTION = PAGE[PAGE.index("## Group weights") : PAGE.index("### Which layers carried it")]
STYLES = ("oil", "ink", "chalk")
QUERIES = 12


class Classifier(ClassificationAdapter):
    def build_model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))

    def training_data(self):
        generator = torch.Generator().manual_seed(0)
        return [
            Example(f"row-{i:02d}", torch.randn(5, generator=generator), i % 3, {"style": STYLES[i % 3]})
            for i in range(80)
        ]


@pytest.fixture
def names():
    """What the page assumes: a model's rows, outputs measured against them, and effects of further training."""
    adapter = Classifier()
    model, examples = adapter.build_model(), adapter.training_data()
    plan = plan_features(model, FeatureSettings())
    rows = [compute_features(adapter, model, examples[QUERIES:], plan)]
    measured = compute_features(adapter, model, examples[:QUERIES], plan)
    halves = random_halves(rows[0].example_ids, 10)
    by_seed = np.random.default_rng(0).standard_normal((2, 3, len(halves), QUERIES))
    effects = Effects("subset", tuple(halves), tuple(measured.example_ids), (10, 50, 200), by_seed)
    return {
        "MethodSpec": MethodSpec,
        "prepare_queries": prepare_queries,
        "plan": plan,
        "rows": rows,
        "measured": measured,
        "queries": prepare_queries(MethodSpec("grad_dot"), measured, plan),
        "styles": tuple(example.attributes["style"] for example in examples[:QUERIES]),
        "effects": effects,
        "spectrum": Spectrum.fit(observed_vectors(rows, plan)),
        "first": range(4),
        "second": range(4, 8),
    }


def test_the_page_s_code_runs_and_gives_what_it_says(names):
    for code in re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL):
        exec(compile(code, "docs/attribution.md", "exec"), names)  # noqa: S102 (our own page)
    assert names["learned"].objective == "self_supervised"
    assert names["style"].objective == "aspect:style"
    assert names["fitted"].evidence["level"] == "block"
    assert names["weighting"].objective in {"further_training", "uniform"}
    assert names["unlabelled"].objective in {"self_supervised", "uniform"}
    assert set(names["best"]) == {10, 50, 200}
