"""Which files of a folder hold a model's weights: as transformers, peft, Lightning and MLflow leave them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from gradtrail.digests import sha256_file, sha256_json
from gradtrail.errors import CheckpointError
from gradtrail.storage.gradients.measured import first_few
from gradtrail.storage.models.checkpoints import WeightsFile, read_file
from gradtrail.storage.models.frozen_bases import ADAPTER_CONFIG

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".pt2", ".bin", ".ckpt")
_INDEX_SUFFIX = ".index.json"
_JSON_LIMIT = 100_000_000
_COMPANION = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|training_args|random_states|sampler|dataloader)([_.-].*)?", re.IGNORECASE
)
"""What trainers write beside the weights: it is no model, whatever its name ends with."""
_CHECKPOINT_FOLDER = re.compile(r"checkpoint-(\d+)")
_STEP_IN_NAME = re.compile(r"step=(\d+)")
_TRAINER_STATE = "trainer_state.json"
_PREFERRED = {"pytorch_model": "model", "adapter_model": "adapter_model"}
"""Names of pickled weights that safetensors of the other name take the place of, as transformers and peft read them."""


@dataclass(frozen=True)
class FoundWeights:
    """Weights of one step: a file, or an index and the shards that it lists.

    `learning_rate` is None where nobody recorded it, and `step` where only the file itself can say it.
    """

    path: Path
    shards: tuple[Path, ...] = ()
    step: int | None = None
    learning_rate: float | None = None

    @property
    def sha256(self) -> str:
        """Digest of the file; of shards, of their names and digests."""
        if not self.shards:
            return sha256_file(self.path)
        return sha256_json({shard.name: sha256_file(shard) for shard in self.shards})

    @property
    def byte_size(self) -> int:
        """Bytes of the file, or of all shards."""
        return sum(each.stat().st_size for each in self.shards or (self.path,))

    @property
    def adapter_config(self) -> Path | None:
        """The configuration of a peft adapter, if these are an adapter's weights and it lies beside them."""
        beside = self.path.parent / ADAPTER_CONFIG
        return beside if self.path.name.startswith("adapter_model") and beside.is_file() else None

    def read(self) -> WeightsFile:
        """All tensors, by the names that the files have for them. Raises as `read_file` does.

        Raises:
            CheckpointError: also where shards hold one name twice, or another than the index says.
        """
        if not self.shards:
            return read_file(self.path)
        listed = _weight_map(self.path)
        tensors: dict[str, Tensor] = {}
        formats = set()
        for shard in self.shards:
            read = read_file(shard)
            formats.add(read.format)
            if double := sorted(tensors.keys() & read.tensors.keys()):
                raise CheckpointError(f"{self.path.parent} holds {first_few(double)} in two shards.", _SAVE_AGAIN)
            tensors |= read.tensors
        if absent := sorted(listed.keys() - tensors.keys()):
            raise CheckpointError(f"{self.path} lists {first_few(absent)}, which no shard holds.", _SAVE_AGAIN)
        return WeightsFile(tensors, formats.pop())


_SAVE_AGAIN = "Save the model again by save_pretrained, and register that folder."


def find_weights(place: Path, *, label: str) -> list[FoundWeights]:
    """The weights in a file or folder, in order of steps: the one that serves is the last.

    - folders of `save_pretrained`, in one file or in shards with their index; safetensors before pickled ones, which
      `transformers` too reads only where there are no others;
    - what a Trainer leaves: `checkpoint-10`, or several of them, and beside them the model that it saved in the end;
    - adapters of peft, checkpoints of Lightning, a folder that MLflow logged, with weights in one sub-folder.

    Nothing but names is looked at, and nothing outside of the folder.

    Args:
        label: what the folder is called in messages.

    Raises:
        CheckpointError: there are none, or several and nobody can say which one serves.
    """
    if place.is_file():
        return [FoundWeights(place, step=_step_by_name(place))]
    root = _root(place)
    found = _below(place, root)
    if len(found) == 1:
        return found[0]
    names = first_few(each.path.relative_to(place).as_posix() for one in found for each in one) or "none"
    raise CheckpointError(
        f"{label} should hold exactly one file of weights; found {sum(map(len, found))}: {names}.",
        "Name the file or sub-folder that serves, or register several checkpoints through gradtrail.register."
        if found
        else "Save it as safetensors: model.save_pretrained, or safetensors.torch.save_file(model.state_dict(), path).",
    )


def _root(place: Path) -> Path:
    """The folder that files must not leave. In the cache of the Hugging Face hub, snapshots are links into `blobs`."""
    resolved = place.resolve()
    is_snapshot = resolved.parent.name == "snapshots" and (resolved.parent.parent / "blobs").is_dir()
    return resolved.parent.parent if is_snapshot else resolved


def _below(folder: Path, root: Path) -> list[list[FoundWeights]]:
    """Each way to read the weights of a folder; one, unless it is unclear which of them serve."""
    own = _directly_in(folder, root)
    steps = _by_step(folder, root)
    if len(own) == 1 and steps:
        return [_with_last(steps, own[0])]
    if own:
        in_order = _in_order_of_names(own)
        return [in_order] if in_order else [[each] for each in own]
    if steps:
        return [steps]
    return [found for sub in sorted(folder.iterdir()) if _is_inside(sub, root) for found in _below_if_folder(sub, root)]


def _below_if_folder(sub: Path, root: Path) -> list[list[FoundWeights]]:
    return _below(sub, root) if sub.is_dir() and not sub.is_symlink() else []


def _directly_in(folder: Path, root: Path) -> list[FoundWeights]:
    """Weights that lie in the folder itself, each whole set once."""
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and _is_inside(path, root)}
    indexes = [path for name, path in files.items() if name.endswith(_INDEX_SUFFIX) and _is_weights(name[:-11])]
    sharded = [FoundWeights(path, _shards(path, files)) for path in indexes]
    taken = {shard.name for each in sharded for shard in each.shards}
    single = [FoundWeights(path) for name, path in files.items() if _is_weights(name) and name not in taken]
    state = _trainer_state(folder)
    found = [FoundWeights(each.path, each.shards, *state) for each in _preferred([*sharded, *single])]
    return [
        FoundWeights(each.path, each.shards, _step_by_name(each.path), each.learning_rate)
        if each.step is None
        else each
        for each in found
    ]


def _is_weights(name: str) -> bool:
    return Path(name).suffix.lower() in WEIGHT_SUFFIXES and not _COMPANION.fullmatch(name)


def _preferred(found: list[FoundWeights]) -> list[FoundWeights]:
    """Leave out pickled weights where the same folder has them as safetensors, as those who read such folders do."""
    safe = {each.path.name.partition(".")[0] for each in found if ".safetensors" in each.path.name}
    return [each for each in found if not (".bin" in each.path.name and _safe_name(each.path.name) in safe)]


def _safe_name(name: str) -> str:
    stem = name.partition(".")[0]
    return _PREFERRED.get(stem, "")


def _by_step(folder: Path, root: Path) -> list[FoundWeights]:
    """The weights in `checkpoint-N` folders, by N."""
    steps = {}
    for sub in folder.iterdir():
        named = _CHECKPOINT_FOLDER.fullmatch(sub.name)
        if named and sub.is_dir() and _is_inside(sub, root):
            found = _directly_in(sub, root)
            if len(found) == 1:
                steps[int(named[1])] = found[0]
            elif found:
                names = first_few(each.path.name for each in found)
                raise CheckpointError(f"{sub} holds several files of weights: {names}.", "Leave the one that serves.")
    return [
        FoundWeights(each.path, each.shards, step, each.learning_rate if each.step == step else None)
        for step, each in sorted(steps.items())
    ]


def _with_last(steps: list[FoundWeights], last: FoundWeights) -> list[FoundWeights]:
    """Checkpoints up to the model that a Trainer saved in the end, which is the last or the best of them."""
    digest = last.sha256
    same = [position for position, each in enumerate(steps) if each.sha256 == digest]
    if same:
        return steps[: same[-1] + 1]
    at = max(last.step or 0, steps[-1].step or 0)
    return [*steps, FoundWeights(last.path, last.shards, at, last.learning_rate)]


def _in_order_of_names(found: list[FoundWeights]) -> list[FoundWeights]:
    """Checkpoints of Lightning by the step in their names; none where one of several does not say its own."""
    if any(each.path.suffix.lower() != ".ckpt" for each in found):
        return found if len(found) == 1 else []
    named = [each for each in found if _step_by_name(each.path) is not None]
    steps = {each.step for each in named}
    rest = [each for each in found if each not in named]
    if len(steps) < len(named) or any(each.path.stem != "last" for each in rest):
        return found if len(found) == 1 else []
    ordered = sorted(named, key=lambda each: each.step or 0)
    # Lightning's last.ckpt is written with the newest of the others.
    return ordered or rest


def _trainer_state(folder: Path) -> tuple[int | None, float | None]:
    """Step and learning rate by a Trainer's own record; its log has the rate that the step was taken with."""
    state = _read_json(folder / _TRAINER_STATE) if (folder / _TRAINER_STATE).is_file() else None
    step = state.get("global_step") if isinstance(state, dict) else None
    if not isinstance(state, dict) or not isinstance(step, int):
        return None, None
    logged = state.get("log_history")
    rates = [
        each["learning_rate"]
        for each in (logged if isinstance(logged, list) else [])
        if isinstance(each, dict) and each.get("step") == step and isinstance(each.get("learning_rate"), float)
    ]
    return step, rates[-1] if rates else None


def _step_by_name(path: Path) -> int | None:
    named = _CHECKPOINT_FOLDER.fullmatch(path.resolve().parent.name) or _STEP_IN_NAME.search(path.stem)
    return int(named[1]) if named else None


def _weight_map(index: Path) -> Mapping[str, str]:
    content = _read_json(index)
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed or not all(isinstance(each, str) for each in listed.values()):
        raise CheckpointError(f"{index} lists no weights.", _SAVE_AGAIN)
    return listed


def _shards(index: Path, files: Mapping[str, Path]) -> tuple[Path, ...]:
    names = sorted(set(_weight_map(index).values()))
    if outside := [name for name in names if PurePosixPath(name).name != name]:
        raise CheckpointError(f"{index} lists {first_few(outside)}, which lies outside of its folder.", _SAVE_AGAIN)
    if absent := [name for name in names if name not in files]:
        raise CheckpointError(f"{index} lists {first_few(absent)}, which is not in its folder.", _SAVE_AGAIN)
    return tuple(files[name] for name in names)


def _read_json(path: Path) -> Any:
    if path.stat().st_size > _JSON_LIMIT:
        raise CheckpointError(f"{path} is too large for what it should be.", _SAVE_AGAIN)
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as fault:
        raise CheckpointError(f"{path} is no JSON: {fault}.", _SAVE_AGAIN) from fault


def _is_inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root)
