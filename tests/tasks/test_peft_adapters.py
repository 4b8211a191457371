"""Adapters of peft that come without their base: taken in, pinned to it, and one model however they are run.

peft is no dependency: model and files are made by hand with the names that `save_pretrained` of peft 0.21.2 writes.
"""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradtrail.errors import CheckpointError
from gradtrail.registration import register_file
from gradtrail.storage.models.checkpoints import load_into, read_file
from gradtrail.tasks.ingest.taking_in import choose_adapter, fetch_files, store_checkpoints

ADAPTER = """
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

import gradtrail

SAID = json.loads(Path(__file__).with_suffix(".json").read_text())


class LoraLinear(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})
        self.merged = False

    def forward(self, inputs):
        said = self.base_layer(inputs)
        return said if self.merged else said + self.lora_B["default"](self.lora_A["default"](inputs))


class SavedWhole(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.original_module = module.requires_grad_(False)
        self.modules_to_save = nn.ModuleDict({"default": nn.Linear(4, 3)})

    def forward(self, inputs):
        return self.modules_to_save["default"](inputs)


class Peft(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(SAID["base_seed"])
        self.base_model = nn.Module()
        first, head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.base_model.model = nn.ModuleDict({"first": LoraLinear(first), "classifier": SavedWhole(head)})
        if SAID["tied"]:
            self.base_model.model["again"] = first
        self.peft_config = {"default": SimpleNamespace(r=2, lora_alpha=SAID["alpha"], peft_type="LORA")}

    def forward(self, inputs):
        hidden = self.base_model.model["first"](inputs)
        if SAID["tied"]:
            hidden = self.base_model.model["again"](hidden)
        return self.base_model.model["classifier"](hidden)

    def merge_adapter(self):
        layer = self.base_model.model["first"]
        layer.base_layer.weight.data += layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        layer.merged = True


class Adapter(gradtrail.ClassificationAdapter):
    def build_model(self):
        return Peft()

    def training_data(self):
        facts = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
        return [gradtrail.Example(f"e{i}", facts[i], i % 3, {"source": "a"}) for i in range(6)]
"""
FIRST = "base_model.model.first"


@pytest.fixture
def peft(tiny):
    """A project whose model is a small LoRA."""
    (tiny.folder / f"{tiny.module}.py").write_text(ADAPTER)
    build_with(tiny)
    return tiny


def build_with(tiny, **changes):
    said = {"base_seed": 0, "alpha": 8, "tied": False, **changes}
    (tiny.folder / f"{tiny.module}.json").write_text(json.dumps(said))
    sys.modules.pop(tiny.module, None)


def saved(folder, **config):
    """The folder of `save_pretrained`: no `.default` in the names, a module saved whole under the name it replaces."""
    folder.mkdir()
    torch.manual_seed(5)
    tensors = {
        f"{FIRST}.lora_A.weight": torch.randn(2, 4),
        f"{FIRST}.lora_B.weight": torch.randn(4, 2),
        "base_model.model.classifier.weight": torch.randn(3, 4),
        "base_model.model.classifier.bias": torch.randn(3),
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8, "peft_version": "0.21.2", **config})
    )
    return folder


def registered(tiny, place):
    return register_file(place, adapter=tiny.reference, name="tuned", alias="", settings=tiny.settings)


def stored(tiny, version):
    chosen = choose_adapter(tiny.workspace, version, tiny.reference)
    files = fetch_files(tiny.workspace, version)
    return store_checkpoints(tiny.workspace, version, files, chosen, allow_code_execution=False)


@pytest.mark.parametrize("whole_folder", [True, False])
def test_the_adapters_tensors_go_to_their_places_and_the_base_stays_out_of_the_file(peft, whole_folder):
    folder = saved(peft.folder / "adapter")
    version = registered(peft, folder if whole_folder else folder / "adapter_model.safetensors")
    [checkpoint] = stored(peft, version)
    read = read_file(peft.workspace.checkpoints / f"{checkpoint.weights_sha256}.safetensors")
    assert set(read.tensors) == {
        f"{FIRST}.lora_A.default.weight",
        f"{FIRST}.lora_B.default.weight",
        "base_model.model.classifier.modules_to_save.default.weight",
        "base_model.model.classifier.modules_to_save.default.bias",
    }
    given = load_file(folder / "adapter_model.safetensors")
    assert torch.equal(read.tensors[f"{FIRST}.lora_B.default.weight"], given[f"{FIRST}.lora_B.weight"])
    assert len(read.base_sha256) == 64
    assert checkpoint.checkpoint_id == checkpoint.weights_sha256 == version.tags["gradtrail.checkpoint"]


def test_another_base_under_the_same_adapter_is_refused_when_the_version_is_used(peft):
    [checkpoint] = stored(peft, registered(peft, saved(peft.folder / "adapter")))
    read = read_file(peft.workspace.checkpoints / f"{checkpoint.weights_sha256}.safetensors")
    build_with(peft, base_seed=1)
    with pytest.raises(CheckpointError, match="are an adapter for the base"):
        registered(peft, peft.workspace.checkpoints / f"{checkpoint.weights_sha256}.safetensors")
    with pytest.raises(CheckpointError, match=r"tuned/1 are an adapter for the base .* build_model gives the base"):
        load_into(peft.adapter().build_model(), read.tensors, name="tuned/1", expected_base_sha256=read.base_sha256)


def test_a_registered_folder_of_peft_gets_an_id_that_holds_the_base(peft):
    client = peft.workspace.registry().client
    client.create_registered_model("raw")
    client.create_model_version("raw", str(saved(peft.folder / "adapter")))
    version = peft.workspace.registry().resolve("raw/1")
    [first] = stored(peft, version)
    build_with(peft, base_seed=1)
    [second] = stored(peft, version)
    assert first.checkpoint_id != second.checkpoint_id
    assert first.byte_size == second.byte_size


def test_a_scale_in_the_configuration_that_build_model_does_not_have_is_refused(peft):
    with pytest.raises(CheckpointError, match=r"another configuration .*lora_alpha 16 instead of 8"):
        registered(peft, saved(peft.folder / "adapter", lora_alpha=16))


def test_an_adapter_that_merging_makes_another_model_is_refused(peft):
    build_with(peft, tied=True)
    with pytest.raises(CheckpointError, match=r"another model once they are merged into their base.*differ by"):
        registered(peft, saved(peft.folder / "adapter"))


def test_a_part_of_the_adapter_that_is_missing_is_not_taken_from_the_base(peft):
    folder = saved(peft.folder / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(f"{FIRST}.lora_B.weight")
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"Missing: .*lora_B\.default\.weight"):
        registered(peft, folder)


def test_the_whole_state_of_an_adapted_model_needs_no_base(peft):
    model = peft.adapter().build_model()
    torch.save(model.state_dict(), peft.folder / "whole.pt")
    [checkpoint] = stored(peft, registered(peft, peft.folder / "whole.pt"))
    read = read_file(peft.workspace.checkpoints / f"{checkpoint.weights_sha256}.safetensors")
    assert read.base_sha256 == ""
    assert set(read.tensors) == set(model.state_dict())
