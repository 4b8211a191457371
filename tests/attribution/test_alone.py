from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib, importlib.abc, pkgutil, sys

BLOCKED = {"prefect", "mlflow", "duckdb", "lancedb"}

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import gradtrail.attribution
for module in pkgutil.iter_modules(gradtrail.attribution.__path__):
    importlib.import_module(f"gradtrail.attribution.{module.name}")

import torch
from torch import nn
from gradtrail import ClassificationAdapter, Example
from gradtrail.attribution.gradients.capture import iterate_features
from gradtrail.attribution.curvature.blocks import empirical_curvature
from gradtrail.attribution.features.plan import plan_features
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.scoring.passes import score

class Adapter(ClassificationAdapter):
    def build_model(self): return nn.Linear(3, 2)
    def training_data(self): return [Example(str(i), torch.randn(3), i % 2, {"source": "a"}) for i in range(6)]

adapter = Adapter()
model, data = adapter.build_model(), adapter.training_data()
plan = plan_features(model)
rows = list(iterate_features(adapter, model, data, plan, batch_size=6))
queries = prepare_queries(MethodSpec("influence"), rows[0], plan, curvature=empirical_curvature(rows, plan))
# Nor is torch's compiler loaded, nor SymPy with it: 90 MB where nothing is compiled.
unwanted = BLOCKED | {"torch._dynamo", "sympy"}
print(score(queries, lambda: rows, top_k=2).example_count, sorted(unwanted & set(sys.modules)))
"""


def test_attribution_works_with_torch_alone():
    finished = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert finished.stderr == ""
    assert finished.stdout.split() == ["6", "[]"]
