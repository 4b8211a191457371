"""What of an adapter is known to decide its numbers: what changes its digests, and what does not."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import gradtrail
from gradtrail.attribution.adapters.base import Batch
from gradtrail.attribution.adapters.deciding import library_versions, source_digest
from gradtrail.attribution.adapters.loading import adapter_reference, load_adapter
from gradtrail.errors import UsageError

ADAPTER = '''
"""An adapter."""
import os

import torch
from torch import nn

import gradtrail
from weights import WEIGHTS  # of the classes
from shapes import sizes


class Adapter(gradtrail.ClassificationAdapter):
    """Of a small model."""

    def __init__(self):
        self.scale = float(os.environ.get("SCALE", "1"))
        self.folder = os.path.abspath("data")
        self.model = nn.Linear(1, 1)

    def build_model(self):
        return nn.Linear(4, 2)

    def training_data(self):
        return []

    def losses(self, outputs, batch):
        """Weighted."""
        return self.scale * super().losses(outputs, batch) * torch.tensor(WEIGHTS)[batch.targets]

    def preview(self, example):
        return gradtrail.Preview("text", text="1")


class Other(Adapter):
    pass
'''


class Folder:
    """A folder with an adapter, a module beside it and a package beside it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.files = {
            "adapter_here.py": ADAPTER,
            "weights.py": "WEIGHTS = [1.0, 100.0]\n",
            "shapes/__init__.py": "from .inner import sizes\n",
            "shapes/inner.py": "import json\nsizes = [4]\n",
            "unused.py": "1\n",
        }

    def digests(self, name: str = "Adapter") -> dict[str, str]:
        """As a process of its own would find them."""
        for file, text in self.files.items():
            path = self.place / file
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        self.forget()
        return dict(load_adapter(f"adapter_here:{name}", allowed=["*"], search_path=self.place).decided_by)

    def forget(self) -> None:
        """Let the next import read the files again."""
        for name in ("adapter_here", "weights", "shapes", "shapes.inner"):
            sys.modules.pop(name, None)
        sys.path_importer_cache.clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = Folder(tmp_path)
    yield made
    made.forget()


def test_class_modules_beside_it_and_plain_options_count(folder: Folder) -> None:
    own = folder.digests()
    assert own.keys() == {
        "class",
        "adapter_here.py",
        "weights.py",
        "shapes/__init__.py",
        "shapes/inner.py",
        "self.scale",
    }
    assert folder.digests() == own


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("adapter_here.py", "self.scale * super()", "2 * super()"),
        ("adapter_here.py", "nn.Linear(4, 2)", "nn.Linear(4, 3)"),
        ("weights.py", "100.0", "10.0"),
        ("shapes/inner.py", "[4]", "[5]"),
    ],
)
def test_what_may_decide_changes_the_digest_of_its_file_alone(
    folder: Folder, file: str, before: str, after: str
) -> None:
    own = folder.digests()
    folder.files[file] = folder.files[file].replace(before, after)
    changed = folder.digests()
    assert {name for name in own if own[name] != changed[name]} == {file}


def test_another_class_of_the_module_and_another_option_differ(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = folder.digests(), folder.digests("Other")
    assert {name for name in own if own[name] != other[name]} == {"class"}
    monkeypatch.setenv("SCALE", "2")
    other = folder.digests()
    assert {name for name in own if own[name] != other[name]} == {"self.scale"}


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("adapter_here.py", "  # of the classes", ""),
        ("adapter_here.py", '"""Weighted."""', '"""Weighted by class."""'),
        ("adapter_here.py", 'text="1"', 'text="2"'),
        ("adapter_here.py", "nn.Linear(4, 2)", "nn.Linear(\n            4, 2\n        )"),
        ("unused.py", "1", "2"),
    ],
)
def test_words_layout_and_what_is_only_shown_change_nothing(folder: Folder, file: str, before: str, after: str) -> None:
    own = folder.digests()
    assert before in folder.files[file]
    folder.files[file] = folder.files[file].replace(before, after)
    assert folder.digests() == own


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 1.0"),
        ("x = '1'", "x = 1"),
        ("x = 'a'", "x = b'a'"),
        ("f(1, 2)", "f((1, 2))"),
        ("x = [[1], 2]", "x = [[1, 2]]"),
        ("def f(a, b=1): return a", "def f(a, *, b=1): return a"),
        ("if a:\n    b\nc", "if a:\n    b\n    c"),
        ("x = ')'", "x = ']'"),
    ],
)
def test_sources_that_do_something_else_have_other_digests(one: str, other: str) -> None:
    assert source_digest(one.encode()) != source_digest(other.encode())


@pytest.mark.parametrize(
    "other",
    [
        np.array([object()]),
        [1, np.array(["text", None], dtype=object)],
        pd.Series([1.0, 2.0]),
        pd.DataFrame({"x": ["a"]}),
        [gradtrail.Example("a", 1, 1)],
        {1, 2},
        torch.empty(3, device="meta"),
        torch.zeros(2).to_sparse(),
        np.broadcast_to(np.zeros(1), 1 << 25),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_plain_bytes_is_no_option(folder: Folder, other: object) -> None:
    folder.files["weights.py"] += "OTHER = None\n"
    folder.files["adapter_here.py"] = ADAPTER.replace(
        "self.model =", "self.other = weights.OTHER; self.model ="
    ).replace("import os\n", "import os\nimport weights\n")
    folder.digests()
    sys.modules["weights"].OTHER = other  # type: ignore[attr-defined]
    again = load_adapter("adapter_here:Adapter", allowed=["*"], search_path=folder.place)
    assert "self.other" not in again.decided_by
    sys.modules["weights"].OTHER = torch.tensor([1.0, 100.0])  # type: ignore[attr-defined]
    again = load_adapter("adapter_here:Adapter", allowed=["*"], search_path=folder.place)
    assert "self.other" in again.decided_by


def _edit(folder: Folder, file: str, before: str, after: str) -> None:
    folder.files[file] = folder.files[file].replace(before, after)
    (folder.place / file).write_text(folder.files[file])


@pytest.mark.parametrize(
    ("file", "before", "after", "loss"),
    [("adapter_here.py", "self.scale * super()", "20 * super()", 20.0), ("weights.py", "[1.0,", "[5.0,", 5.0)],
)
def test_a_source_that_changed_since_it_was_imported_is_imported_anew(
    folder: Folder, file: str, before: str, after: str, loss: float
) -> None:
    def measured() -> float:
        adapter = load_adapter("adapter_here:Adapter", allowed=["*"], search_path=folder.place).adapter
        return float(adapter.losses(torch.zeros(1, 2), Batch(None, torch.tensor([0])))) / math.log(2)

    folder.digests()
    assert measured() == pytest.approx(1)
    _edit(folder, file, before, after)
    assert measured() == pytest.approx(loss)


def test_an_adapter_that_was_made_before_its_source_changed_is_not_registered(folder: Folder) -> None:
    folder.digests()
    module = importlib.import_module("adapter_here")
    adapter = module.Adapter()
    assert adapter_reference(adapter) == "adapter_here:Adapter"
    _edit(folder, "adapter_here.py", "self.scale * super()", "20 * super()")
    with pytest.raises(UsageError, match=r"adapter_here:Adapter was made before its source changed"):
        adapter_reference(adapter)
    importlib.reload(module)
    with pytest.raises(UsageError, match=r"was made before its source changed"):
        adapter_reference(adapter)
    assert adapter_reference(module.Adapter()) == "adapter_here:Adapter"


def test_an_adapter_of_gradtrail_counts_alone() -> None:
    loaded = load_adapter("gradtrail.demo.digits:DigitsAdapter")
    assert {name for name in loaded.decided_by if name.endswith(".py")} == {"gradtrail/demo/digits.py"}


def test_versions_are_of_torch_of_gradtrail_and_of_what_a_model_is_built_from() -> None:
    found = library_versions(torch.nn.Linear(1, 1))
    assert found.keys() == {"torch", "gradtrail"}
    assert found["torch"] == torch.__version__
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=8)
    assert library_versions(transformers.GPT2LMHeadModel(config))["transformers"] == transformers.__version__
