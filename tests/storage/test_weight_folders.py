"""Folders as the libraries leave them: which files are the model, in which order, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gradtrail.errors import CheckpointError
from gradtrail.storage.models.weight_folders import find_weights


def weights(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).state_dict()


def trainer_checkpoint(folder: Path, step: int, seed: int = 0, *, rates=()) -> Path:
    """What the Trainer of transformers 5.23 leaves in `checkpoint-N`."""
    folder.mkdir(parents=True)
    save_file(weights(seed), folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin", "scaler.pt"):
        torch.save({"step": step}, folder / name)
    (folder / "config.json").write_text("{}")
    log = [{"step": at, "learning_rate": rate, "loss": 1.0} for at, rate in rates]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": log}))
    return folder


def sharded(folder: Path, suffix: str, names=None) -> Path:
    """The layout of `save_pretrained(max_shard_size=…)`, transformers 5.23 (safetensors) and 4.x (bin)."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    whole, listed = weights(), {}
    for number, name in enumerate(whole, start=1):
        file = f"{stem}-{number:05d}-of-00004.{suffix}"
        listed[name] = file
        part = {name: whole[name]}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
    index = {"metadata": {"total_size": 104}, "weight_map": {**listed, **(names or {})}}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


def names(folder, place=None):
    return [found.path.relative_to(folder).as_posix() for found in find_weights(place or folder, label="it")]


def test_a_trainers_checkpoint_is_its_model_with_step_and_rate(tmp_path):
    folder = trainer_checkpoint(tmp_path / "checkpoint-10", 10, rates=[(5, 0.2), (10, 0.1), (10, 0.1)])
    [found] = find_weights(folder, label="it")
    assert (found.path.name, found.step, found.learning_rate) == ("model.safetensors", 10, 0.1)
    assert found.read().tensors.keys() == weights().keys()
    renamed = folder.rename(tmp_path / "model")
    assert find_weights(renamed, label="it")[0].step == 10


def test_checkpoints_of_a_run_come_in_order_of_steps_and_the_saved_model_last(tmp_path):
    for step in (10, 9, 100):
        trainer_checkpoint(tmp_path / f"checkpoint-{step}", step, seed=step)
    assert [found.step for found in find_weights(tmp_path, label="it")] == [9, 10, 100]
    save_file(weights(7), tmp_path / "model.safetensors")
    assert names(tmp_path)[-1] == "model.safetensors"
    assert [found.step for found in find_weights(tmp_path, label="it")] == [9, 10, 100, 100]


def test_the_best_model_that_a_trainer_saved_is_the_last_checkpoint(tmp_path):
    for step in (10, 20, 30):
        trainer_checkpoint(tmp_path / f"checkpoint-{step}", step, seed=step)
    save_file(weights(20), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert [found.step for found in find_weights(tmp_path, label="it")] == [10, 20]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_as_one(tmp_path, suffix):
    [found] = find_weights(sharded(tmp_path / "saved", suffix), label="it")
    read = found.read()
    assert {name: value.tolist() for name, value in read.tensors.items()} == {
        name: value.tolist() for name, value in weights().items()
    }
    assert found.byte_size == sum(shard.stat().st_size for shard in found.shards)
    before = found.sha256
    save_file({"0.weight": torch.zeros(4, 3)}, found.shards[0])
    assert find_weights(tmp_path / "saved", label="it")[0].sha256 != before


def test_an_index_that_does_not_fit_its_shards_is_refused_by_name(tmp_path):
    [found] = find_weights(
        sharded(tmp_path / "a", "safetensors", {"9.bias": "model-00001-of-00004.safetensors"}), label=""
    )
    with pytest.raises(CheckpointError, match=r"lists 9\.bias, which no shard holds"):
        found.read()
    with pytest.raises(CheckpointError, match=r"gone\.safetensors, which is not in its folder"):
        find_weights(sharded(tmp_path / "b", "safetensors", {"9.bias": "gone.safetensors"}), label="")
    save_file(weights(), tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointError, match="outside of its folder"):
        find_weights(sharded(tmp_path / "c", "safetensors", {"9.bias": "../secret.safetensors"}), label="")
    [double] = find_weights(sharded(tmp_path / "d", "safetensors"), label="")
    save_file(weights(), double.shards[1])
    with pytest.raises(CheckpointError, match=r"holds 0\.weight in two shards"):
        double.read()
    (tmp_path / "d" / "model.safetensors.index.json").write_text("no")
    with pytest.raises(CheckpointError, match="is no JSON"):
        find_weights(tmp_path / "d", label="")


def test_safetensors_take_the_place_of_pickled_weights_of_the_same_model(tmp_path):
    save_file(weights(), tmp_path / "model.safetensors")
    torch.save(weights(1), tmp_path / "pytorch_model.bin")
    assert names(tmp_path) == ["model.safetensors"]
    torch.save(weights(1), tmp_path / "other.bin")
    with pytest.raises(CheckpointError, match=r"exactly one file of weights; found 2: model\.safetensors, other\.bin"):
        find_weights(tmp_path, label="it")


def test_an_adapter_of_peft_is_found_with_its_configuration_also_under_its_own_name(tmp_path):
    (tmp_path / "mine").mkdir()
    save_file({"base_model.model.0.lora_A.weight": torch.ones(2, 3)}, tmp_path / "mine" / "adapter_model.safetensors")
    (tmp_path / "mine" / "adapter_config.json").write_text("{}")
    [found] = find_weights(tmp_path, label="it")
    assert found.adapter_config == tmp_path / "mine" / "adapter_config.json"


def test_checkpoints_of_lightning_come_in_order_of_steps(tmp_path):
    for name in ("epoch=1-step=20.ckpt", "epoch=0-step=9.ckpt", "last.ckpt"):
        torch.save({"state_dict": weights()}, tmp_path / name)
    assert names(tmp_path) == ["epoch=0-step=9.ckpt", "epoch=1-step=20.ckpt"]
    torch.save({"state_dict": weights()}, tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match="found 4: best"):
        find_weights(tmp_path, label="it")


def test_endings_count_in_capitals_too_and_below_one_folder(tmp_path):
    (tmp_path / "data").mkdir()
    torch.save(weights(), tmp_path / "data" / "MODEL.PTH")
    (tmp_path / "MLmodel").write_text("")
    assert names(tmp_path) == ["data/MODEL.PTH"]
    (tmp_path / "more").mkdir()
    torch.save(weights(), tmp_path / "more" / "model.pt")
    with pytest.raises(CheckpointError, match=r"found 2: data/MODEL\.PTH, more/model\.pt"):
        find_weights(tmp_path, label="it")


def test_a_folder_without_weights_is_refused_with_what_to_do(tmp_path):
    torch.save({}, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"it should hold .* found 0: none\. Save it as safetensors"):
        find_weights(tmp_path, label="it")


def test_links_that_leave_the_folder_are_not_followed_but_those_of_the_hubs_cache_are(tmp_path):
    save_file(weights(), tmp_path / "elsewhere.safetensors")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="found 0"):
        find_weights(tmp_path / "own", label="it")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "elsewhere.safetensors").rename(tmp_path / "models--a--b" / "blobs" / "abcd")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abcd")
    assert names(snapshot) == ["model.safetensors"]
