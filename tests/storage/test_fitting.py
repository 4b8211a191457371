"""Weights whose names differ from the model's where the architecture does not, and those that are another model."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from gradtrail.errors import CheckpointError
from gradtrail.storage.models.checkpoints import load_into, read_file, read_weights, write_safetensors


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))


def equal_weights(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def loaded(weights, model, **options):
    fitted = load_into(model, weights, name="some/1", **options)
    return fitted, model.state_dict()


def compiled_in_parallel():
    inner = network()
    inner[2] = torch.compile(nn.DataParallel(inner[2]), backend="eager")
    return nn.DataParallel(torch.compile(inner, backend="eager"))


def one_block_compiled():
    inner = network()
    inner[2][0] = torch.compile(inner[2][0], backend="eager")
    return inner


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda: torch.compile(nn.DataParallel(network()), backend="eager"),
        lambda: nn.DataParallel(torch.compile(network(), backend="eager")),
        compiled_in_parallel,
        one_block_compiled,
        lambda: AveragedModel(network()),
    ],
    ids=["compiled parallel", "parallel compiled", "wrapped within wrapped", "one block compiled", "averaged"],
)
def test_wrappers_change_names_and_no_weights(wrapped):
    weights = wrapped().state_dict()
    assert not weights.keys() <= network().state_dict().keys()
    assert equal_weights(loaded(weights, network(1))[1], network().state_dict())


def test_an_adapter_may_build_the_wrapped_model_and_the_file_hold_the_plain_one():
    model = one_block_compiled()
    nn.init.zeros_(model[0].weight)
    loaded(network(1).state_dict(), model)
    assert torch.equal(model[0].weight, network(1)[0].weight)
    assert torch.equal(model[2][0].weight, network(1)[2][0].weight)


def test_a_model_with_a_module_called_module_keeps_its_name():
    model = nn.Module()
    model.module, model.weight = nn.Linear(2, 2, bias=False), nn.Parameter(torch.zeros(2, 2))
    weights = {"module.weight": torch.ones(2, 2), "weight": torch.full((2, 2), 2.0)}
    assert equal_weights(loaded(weights, model)[1], dict(sorted(weights.items(), reverse=True)) | weights)


def test_two_names_for_one_tensor_are_refused_by_name():
    weights = network().state_dict()
    weights["0._orig_mod.weight"] = weights["0.weight"] + 1
    model = network(1)
    with pytest.raises(CheckpointError, match=r"twice.*0\.weight \(as 0\._orig_mod\.weight and 0\.weight\)"):
        load_into(model, weights, name="some/1")
    assert equal_weights(model.state_dict(), network(1).state_dict())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("old_file", [True, False])
def test_weight_norm_is_read_in_both_spellings(old_file):
    def normed(old, seed):
        torch.manual_seed(seed)
        norm = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
        return nn.Sequential(norm(nn.Linear(3, 2)), nn.ReLU())

    trained, model, inputs = normed(old_file, 0), normed(not old_file, 1), torch.randn(5, 3)
    assert trained.state_dict().keys() != model.state_dict().keys()
    wrapped = {f"_orig_mod.{name}": value for name, value in trained.state_dict().items()}
    load_into(model, wrapped, name="some/1")
    torch.testing.assert_close(model(inputs), trained(inputs))


def test_a_norm_whose_file_does_not_count_batches_is_read():
    weights = {name: value for name, value in network().state_dict().items() if "num_batches" not in name}
    model = network(1)
    load_into(model, weights, name="some/1")
    assert torch.equal(model[0].weight, network()[0].weight)
    with pytest.raises(CheckpointError, match=r"Missing: 1\.running_mean"):
        load_into(model, {name: weights[name] for name in weights if name != "1.running_mean"}, name="some/1")


def lazy_network():
    return nn.Sequential(
        nn.LazyConv1d(4, 1, groups=2),
        nn.LazyConvTranspose1d(6, 2),
        nn.LazyBatchNorm1d(),
        nn.Flatten(),
        nn.LazyLinear(2),
    )


def test_lazy_modules_get_their_shapes_from_the_file_and_are_what_they_stand_for():
    trained = nn.Sequential(
        nn.Conv1d(2, 4, 1, groups=2), nn.ConvTranspose1d(4, 6, 2), nn.BatchNorm1d(6), nn.Flatten(), nn.Linear(24, 2)
    )
    model = lazy_network()
    load_into(model, trained.state_dict(), name="lazy/1")
    assert repr(model) == repr(trained)
    assert [type(module) for module in model] == [type(module) for module in trained]
    inputs = torch.randn(5, 2, 3)
    torch.testing.assert_close(model.eval()(inputs), trained.eval()(inputs))
    without = {name: value for name, value in trained.state_dict().items() if name != "4.bias"}
    with pytest.raises(CheckpointError, match=r"Missing: 4\.bias"):
        load_into(lazy_network(), without, name="lazy/1")


class Positioned(nn.Module):
    _keys_to_ignore_on_load_unexpected = (r"attn.bias",)

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("frequencies", torch.tensor([1.0, 0.5]) / 3, persistent=False)


@pytest.mark.parametrize(
    "left",
    [
        {"frequencies": torch.tensor([1.0, 0.5]) / 3},
        {"_orig_mod.frequencies": (torch.tensor([1.0, 0.5]) / 3).bfloat16()},
        {"embeddings.position_ids": torch.arange(7)[None]},
        {"h.0.attn.bias": torch.ones(3, 3, dtype=torch.uint8).tril()},
    ],
    ids=["a buffer", "a buffer in bfloat16", "position_ids", "a mask that transformers leaves unread"],
)
def test_what_a_model_makes_itself_may_be_left_in_the_file(left):
    fitted, _ = loaded({**Positioned().layer.state_dict(prefix="layer."), **left}, Positioned())
    assert fitted.set_aside == tuple(left)
    assert set(fitted.tensors) == {"layer.weight", "layer.bias"}


@pytest.mark.parametrize(
    "left",
    [
        {"frequencies": torch.tensor([1.0, 0.25]) / 3},
        {"embeddings.position_ids": torch.tensor([[2, 3, 4]])},
        {"h.0.attn.bias": torch.ones(3)},
        {"n_averaged": torch.tensor(3)},
    ],
    ids=["another buffer", "other positions", "a bias", "an average of nothing"],
)
def test_what_is_another_in_the_file_is_refused(left):
    weights = {**Positioned().layer.state_dict(prefix="layer."), **left}
    with pytest.raises(CheckpointError, match=f"Unexpected: {next(iter(left))}"):
        load_into(Positioned(), weights, name="some/1")


class Renamed(nn.Linear):
    """Reads `kernel` for `weight`, as a layer does whose author renamed it."""

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        if f"{prefix}kernel" in state_dict:
            state_dict[f"{prefix}weight"] = state_dict.pop(f"{prefix}kernel").T
        super()._load_from_state_dict(state_dict, prefix, *rest)


def test_names_that_a_module_translates_itself_are_left_to_torchs_strict_load():
    weights = {"0.kernel": torch.arange(6.0).view(3, 2), "0.bias": torch.zeros(2)}
    model = nn.Sequential(Renamed(3, 2))
    fitted, state = loaded({f"module.{name}": value for name, value in weights.items()}, model)
    assert torch.equal(state["0.weight"], weights["0.kernel"].T)
    loaded(fitted.tensors, nn.Sequential(Renamed(3, 2)))
    with pytest.raises(CheckpointError, match=r"0\.kernels"):
        load_into(model, {"0.kernels": weights["0.kernel"], "0.bias": torch.zeros(2)}, name="some/1")


def test_a_model_may_lie_below_a_prefix_when_nothing_lies_beside_it():
    below = {f"net.core.{name}": value for name, value in network().state_dict().items()}
    assert equal_weights(loaded(below, network(1))[1], network().state_dict())
    with pytest.raises(CheckpointError, match=r"Missing: .*Unexpected"):
        load_into(network(1), {**below, "head.weight": torch.zeros(2)}, name="some/1")


def test_of_a_larger_module_the_one_part_that_fits_is_read():
    weights = {f"model.{name}": value for name, value in network().state_dict().items()}
    weights["loss.weight"] = torch.ones(2)
    fitted, state = loaded(weights, network(1), within_larger=True)
    assert fitted.set_aside == ("loss.weight",)
    assert equal_weights(state, network().state_dict())
    teacher = {f"teacher.{name}": value for name, value in network(2).state_dict().items()}
    with pytest.raises(CheckpointError, match=r"more than once: under model\., teacher\."):
        load_into(network(1), {**weights, **teacher}, name="some/1", within_larger=True)
    with pytest.raises(CheckpointError, match=r"Unexpected: model\.3\.weight"):
        load_into(network(1), {**weights, "model.3.weight": torch.ones(2)}, name="some/1", within_larger=True)


def test_complex_weights_are_checked_like_others_and_kept_as_they_are(tmp_path):
    model = nn.Module()
    model.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(CheckpointError, match="not finite"):
        load_into(model, {"phase": torch.tensor([1j, complex(0, float("nan"))])}, name="complex/1")
    with pytest.raises(CheckpointError, match="lose precision"):
        load_into(model, {"phase": torch.ones(2, dtype=torch.complex128)}, name="complex/1")
    write_safetensors({"phase": torch.tensor([1 + 2j, 3j]).conj()}, tmp_path / "conjugated")
    load_into(model, load_file(tmp_path / "conjugated"), name="complex/1")
    assert model.phase.tolist() == [1 - 2j, -3j]
    real = nn.Linear(1, 2, bias=False)
    with pytest.raises(CheckpointError, match="lose precision"):
        load_into(real, {"weight": torch.ones(2, 1, dtype=torch.complex64)}, name="complex/1")


def test_a_tensor_that_is_small_in_the_file_and_huge_in_memory_is_refused_by_its_shape(tmp_path):
    torch.save({"weight": torch.zeros(1).expand(10**6, 10**6), "bias": torch.zeros(2)}, tmp_path / "huge.pt")
    assert (tmp_path / "huge.pt").stat().st_size < 3000
    with pytest.raises(CheckpointError, match=r"weight \(1000000, 1000000\) instead of \(2, 2\)"):
        load_into(nn.Linear(2, 2), read_weights(tmp_path / "huge.pt"), name="huge/1")


def test_a_checkpoint_of_lightning_says_its_step(tmp_path):
    """The layout of `Trainer.save_checkpoint`, Lightning 2.6.6."""
    weights = {f"model.{name}": value for name, value in network().state_dict().items()}
    torch.save(
        {
            "epoch": 2,
            "global_step": 40,
            "pytorch-lightning_version": "2.6.6",
            "state_dict": {**weights, "loss.weight": torch.ones(2)},
            "loops": {},
            "optimizer_states": [{"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 0.1}]}],
            "hparams_name": "kwargs",
            "hyper_parameters": {"lr": 0.1},
        },
        tmp_path / "epoch=1-step=40.ckpt",
    )
    read = read_file(tmp_path / "epoch=1-step=40.ckpt")
    assert (read.step, read.within_larger, read.format) == (40, True, "torch_state_dict")
    assert equal_weights(loaded(read.tensors, network(1), within_larger=True)[1], network().state_dict())
