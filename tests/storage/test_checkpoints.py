import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from gradtrail.digests import sha256_file
from gradtrail.errors import CheckpointError, UntrustedCodeError
from gradtrail.storage.models.checkpoints import (
    detect_format,
    load_into,
    read_weights,
    to_safetensors,
    write_safetensors,
)


class TiedModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight


class MaskedModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))


class TouchesAFile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.fixture
def safe_file(small_network, tmp_path):
    path = tmp_path / "weights.safetensors"
    write_safetensors(small_network.state_dict(), path)
    return path


def equal_weights(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_safetensors_are_told_by_content_and_read_back(safe_file, small_network):
    renamed = safe_file.rename(safe_file.with_suffix(".pkl"))
    assert detect_format(renamed) == "safetensors"
    assert equal_weights(read_weights(renamed), small_network.state_dict())


@pytest.mark.parametrize(
    "wrap",
    [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model_state_dict": s}],
    ids=["alone", "with an epoch", "as in torch's tutorial"],
)
def test_a_state_dict_is_read_also_out_of_a_training_checkpoint(small_network, tmp_path, wrap):
    path = tmp_path / "weights.safetensors"
    torch.save(wrap(small_network.state_dict()), path)
    assert detect_format(path) == "torch_state_dict"
    assert equal_weights(read_weights(path), dict(small_network.state_dict()))


def test_conversion_gives_the_same_bytes_each_time_whatever_the_metadata(small_network, tmp_path):
    torch.save(small_network.state_dict(), tmp_path / "weights.pt")
    assert to_safetensors(tmp_path / "weights.pt", tmp_path / "a") == to_safetensors(
        tmp_path / "weights.pt", tmp_path / "b"
    )
    metadata = {name: name * 3 for name in ["step", "adapter", "licence", "dataset", "ünïcode"]}
    digests = {write_safetensors(small_network.state_dict(), tmp_path / "c", metadata) for _ in range(10)}
    assert len(digests) == 1
    assert digests == {sha256_file(tmp_path / "c")}
    assert equal_weights(load_file(tmp_path / "c"), small_network.state_dict())


def test_tensors_that_share_memory_are_written_and_read(tmp_path):
    model = TiedModel()
    write_safetensors(model.state_dict(), tmp_path / "tied")
    assert set(read_weights(tmp_path / "tied")) == {"embedding.weight", "head.weight"}
    whole = torch.arange(6.0)
    write_safetensors({"front": whole[:4], "back": whole[2:], "turned": whole.view(2, 3).T}, tmp_path / "views")
    assert torch.equal(read_weights(tmp_path / "views")["turned"], whole.view(2, 3).T)


def test_a_write_that_fails_leaves_what_was_there(safe_file, small_network):
    before = safe_file.read_bytes()
    with pytest.raises(CheckpointError, match="sparse is not a dense tensor"):
        write_safetensors({"sparse": torch.eye(3).to_sparse()}, safe_file)
    assert safe_file.read_bytes() == before
    assert [path.name for path in safe_file.parent.iterdir()] == [safe_file.name]
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_safetensors(small_network.state_dict(), safe_file / "below-a-file")


@pytest.mark.parametrize("kept", [1, 4, 8, 9, 40, -1])
def test_truncated_safetensors_are_refused(safe_file, kept):
    safe_file.write_bytes(safe_file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"Download or register|neither safetensors"):
        read_weights(safe_file)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_truncated_state_dict_is_refused(small_network, tmp_path, share):
    path = tmp_path / "weights.pt"
    torch.save(small_network.state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(path)


def test_an_empty_file_a_folder_and_a_missing_file_are_refused(tmp_path):
    (tmp_path / "empty").touch()
    for name, cause in (("empty", "is empty"), ("", "it is a folder"), ("nowhere", "There is no file")):
        with pytest.raises(CheckpointError, match=cause):
            read_weights(tmp_path / name, expected_sha256="0" * 64 if name == "nowhere" else None)


def test_another_digest_than_recorded_is_named_with_both(safe_file):
    digest = sha256_file(safe_file)
    assert read_weights(safe_file, expected_sha256=digest)
    content = bytearray(safe_file.read_bytes())
    content[-1] ^= 1
    safe_file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{sha256_file(safe_file)}; {digest} was recorded"):
        read_weights(safe_file, expected_sha256=digest)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_nothing_of_a_pickle_is_executed(tmp_path, protocol):
    trace, path = tmp_path / "executed", tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps(TouchesAFile(trace), protocol=protocol))
    with pytest.raises((UntrustedCodeError, CheckpointError)):
        read_weights(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())  # noqa: S301  # the file would have done it
    assert trace.exists()


def test_a_torch_file_that_names_code_is_refused_unread(tmp_path, small_network):
    trace = tmp_path / "executed"
    for content in ({"weight": TouchesAFile(trace)}, small_network):
        torch.save(content, tmp_path / "weights.pt")
        assert detect_format(tmp_path / "weights.pt") == "pickle"
        with pytest.raises(UntrustedCodeError, match=r"can execute code.*save_file"):
            read_weights(tmp_path / "weights.pt")
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_old_torch_files_and_scripts_are_refused_as_able_to_execute_code(small_network, tmp_path):
    torch.save(small_network.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.randn(2, 3)), tmp_path / "script.pt")
    found = {path.name: detect_format(path) for path in tmp_path.iterdir()}
    assert found == {"old.pt": "pickle", "script.pt": "torch_export"}
    for name in found:
        with pytest.raises(UntrustedCodeError, match=name):
            read_weights(tmp_path / name)


def test_a_compressed_state_dict_is_refused_before_it_is_unpacked(small_network, tmp_path):
    torch.save(small_network.state_dict(), tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as before,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as after,
    ):
        for entry in before.namelist():
            after.writestr(entry, before.read(entry))
    with pytest.raises(CheckpointError, match=r"packed\.pt holds plain/data\.pkl compressed"):
        read_weights(tmp_path / "packed.pt")


def test_other_files_are_refused_by_name(tmp_path):
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    (tmp_path / "text").write_text("a text that is no model at all")
    (tmp_path / "header").write_bytes(struct.pack("<Q", 4) + b"[12]")
    for path in list(tmp_path.iterdir()):
        assert detect_format(path) == "unknown"
        with pytest.raises(CheckpointError, match=f"{path.name} is neither"):
            read_weights(path)


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], {}, {"weight": 3}, {"state_dict": {"a": torch.ones(1), "b": "text"}}]
)
def test_a_torch_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"weights\.pt.* Save model\.state_dict"):
        read_weights(tmp_path / "weights.pt")


def test_weights_are_loaded_into_the_architecture_they_fit(safe_file, small_network):
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    load_into(other, read_weights(safe_file), name="digits/1")
    assert equal_weights(other.state_dict(), small_network.state_dict())


def test_another_architecture_is_named_tensor_by_tensor_and_nothing_is_loaded(small_network):
    weights = dict(small_network.state_dict())
    weights["9.weight"] = weights.pop("2.bias")
    weights["0.weight"] = torch.zeros(5, 3)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as refusal:
        load_into(model, weights, name="digits/1")
    for part in ("digits/1", "Missing: 2.bias", "Unexpected: 9.weight", "0.weight (5, 3) instead of (4, 3)"):
        assert part in str(refusal.value)
    assert equal_weights(model.state_dict(), before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(small_network, bad):
    weights = {key: value.clone() for key, value in small_network.state_dict().items()}
    weights["2.weight"][0, 0] = bad
    with pytest.raises(CheckpointError, match=r"not finite .* in 2\.weight"):
        load_into(small_network, weights, name="digits/1")


def test_a_mask_that_is_infinite_by_design_is_no_damage(tmp_path):
    write_safetensors(MaskedModel().state_dict(), tmp_path / "masked")
    load_into(MaskedModel(), read_weights(tmp_path / "masked"), name="masked/1")


def test_tied_weights_may_be_stored_once(tmp_path):
    trained = TiedModel()
    save_model(trained, str(tmp_path / "tied"))
    weights = read_weights(tmp_path / "tied")
    assert len(weights) == 1
    model = TiedModel()
    load_into(model, weights, name="tied/1")
    assert torch.equal(model.head.weight, trained.embedding.weight)


def test_tied_weights_that_differ_in_the_file_are_refused():
    weights = {"embedding.weight": torch.zeros(6, 4), "head.weight": torch.ones(6, 4)}
    with pytest.raises(CheckpointError, match="Tied in the model but different"):
        load_into(TiedModel(), weights, name="tied/1")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_that_a_wrapper_prefixed_are_understood(small_network, prefix):
    weights = {prefix + key: value for key, value in small_network.state_dict().items()}
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    load_into(model, weights, name="digits/1")
    assert equal_weights(model.state_dict(), small_network.state_dict())


def test_a_type_is_widened_but_never_rounded():
    model = nn.Linear(2, 2)
    half = {key: value.half() for key, value in model.state_dict().items()}
    load_into(model, half, name="half/1")
    assert torch.equal(model.weight, half["weight"].float())
    double = {key: value.double() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"lose precision: weight torch\.float64 instead of torch\.float32"):
        load_into(model, double, name="double/1")


def test_an_eight_bit_float_is_checked_like_any_other(tmp_path):
    save_file({"weight": torch.tensor([1.0, torch.nan]).to(torch.float8_e4m3fn)}, tmp_path / "eight")
    model = nn.Module()
    model.register_buffer("weight", torch.zeros(2))
    with pytest.raises(CheckpointError, match="not finite"):
        load_into(model, read_weights(tmp_path / "eight"), name="eight/1")
