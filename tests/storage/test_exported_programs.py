"""Weights of `torch.export.save` files, which MLflow's pytorch flavour writes: raw bytes, read without the program."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from gradtrail.errors import CheckpointError, UntrustedCodeError
from gradtrail.storage.models.checkpoints import load_into, read_file, read_weights

CONFIG = "program/data/weights/model_weights_config.json"


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 4), nn.Linear(4, 6)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor(2, dtype=torch.int64))
        self.shift = nn.Parameter(torch.arange(6.0).view(2, 3).T.to(torch.bfloat16))

    def forward(self, tokens):
        return self.head(self.embedding(tokens)) * self.scale + self.shift.sum()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "program.pt2"
    torch.manual_seed(0)
    model = Tied()
    torch.export.save(torch.export.export(model, (torch.tensor([1, 2]),)), path)
    return path, model


def rewritten(source: Path, destination: Path, change, *, compression=zipfile.ZIP_STORED) -> Path:
    """The archive with its list of weights changed, and files of its own name as before."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(destination, "w", compression) as after:
        for entry in before.namelist():
            content = before.read(entry)
            if entry == CONFIG:
                listed = json.loads(content)
                change(listed["config"])
                content = json.dumps(listed).encode()
            after.writestr(entry, content)
    return destination


def test_weights_are_those_of_the_model_views_and_types_included(exported):
    path, model = exported
    read = read_file(path)
    assert read.format == "torch_export"
    assert read.tensors.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert read.tensors[name].dtype == tensor.dtype
        assert torch.equal(read.tensors[name], tensor)
    load_into(Tied(), read.tensors, name="exported/1")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"sizes": [{"as_int": 10**9}], "strides": [{"as_int": 1}]}, "bytes"),
        ({"storage_offset": {"as_int": 1000}}, "bytes"),
        ({"storage_offset": {"as_int": -1}}, "sizes and strides"),
        ({"sizes": [{"as_int": -2}, {"as_int": 3}]}, "sizes and strides"),
        ({"strides": [{"as_int": 1}]}, "sizes and strides"),
        ({"sizes": [{"as_expr": "s0"}]}, "damaged"),
        ({"dtype": 99}, "damaged"),
        ({"layout": 1}, "not dense"),
    ],
)
def test_sizes_that_reach_beyond_the_bytes_are_refused(exported, tmp_path, change, cause):
    def lie(config):
        config["head.weight"]["tensor_meta"].update(change)

    with pytest.raises(CheckpointError, match=f"damaged exported program.*{cause}|{cause}.*exported program"):
        read_weights(rewritten(exported[0], tmp_path / "program.pt2", lie))


def test_a_path_that_leaves_the_archives_folder_is_refused(exported, tmp_path):
    def leave(config):
        config["head.weight"]["path_name"] = "../constants/model_constants_config.json"

    with pytest.raises(CheckpointError, match="names the weights"):
        read_weights(rewritten(exported[0], tmp_path / "program.pt2", leave))


def test_pickled_weights_are_refused_unread(exported, tmp_path):
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return Path.touch, (marker,)

    def pickled(config):
        config["head.weight"]["use_pickle"] = True

    path = rewritten(exported[0], tmp_path / "program.pt2", pickled)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("program/data/weights/weight_9", pickle.dumps(Evil()))
    with pytest.raises(UntrustedCodeError, match="can execute code"):
        read_weights(path)
    assert not marker.exists()


def test_a_compressed_archive_is_refused_before_it_is_unpacked(exported, tmp_path):
    path = rewritten(exported[0], tmp_path / "program.pt2", dict, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed, which torch never does"):
        read_weights(path)
