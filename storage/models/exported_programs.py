"""The weights of a program by `torch.export.save` (`.pt2`): raw bytes beside JSON, read without the program."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from gradtrail.errors import CheckpointError

_WEIGHTS = "data/weights"
_CONFIG_SUFFIX = "_weights_config.json"
_CONFIG_LIMIT = 100_000_000
_STRIDED = 7
_TYPES: Mapping[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
    29: torch.float8_e4m3fn,
    30: torch.float8_e5m2,
}
"""The numbers that torch._export.serde.schema.ScalarType has for types (torch 2.13)."""


def read_exported(path: Path) -> dict[str, Tensor] | None:
    """Read the weights of an exported program by name; None where they are not plain bytes.

    Pickled weights (`use_pickle`: tensors of a class of their own) and the archives of TorchScript and of older torch
    are not plain. Two names may be views of the same bytes; none reaches beyond them.

    Raises:
        CheckpointError: the archive is damaged, or says other sizes than it has.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {name.partition("/")[2]: name for name in archive.namelist()}
            configs = [inner for inner in entries if inner.startswith(_WEIGHTS) and inner.endswith(_CONFIG_SUFFIX)]
            if len(configs) != 1 or not _is_little_endian(archive, entries):
                return None
            if any(
                each.compress_type != zipfile.ZIP_STORED and _WEIGHTS in each.filename for each in archive.infolist()
            ):
                raise ValueError(
                    "its weights are compressed, which torch never does: a small file could fill the memory"
                )
            if archive.getinfo(entries[configs[0]]).file_size > _CONFIG_LIMIT:
                raise ValueError("its list of weights is too large")
            listed: dict[str, Any] = json.loads(archive.read(entries[configs[0]]))["config"]
            if any(entry["use_pickle"] for entry in listed.values()):
                return None
            stored: dict[str, bytearray] = {}
            for entry in listed.values():
                file = _plain_name(entry["path_name"])
                if file not in stored:
                    stored[file] = bytearray(archive.read(entries[f"{_WEIGHTS}/{file}"]))
            return {name: _tensor(entry["tensor_meta"], stored[entry["path_name"]]) for name, entry in listed.items()}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OSError, zipfile.BadZipFile) as fault:
        raise CheckpointError(
            f"{path} is a damaged exported program: {fault}.", "Export or register the model again."
        ) from fault


def _is_little_endian(archive: zipfile.ZipFile, entries: Mapping[str, str]) -> bool:
    return "byteorder" not in entries or archive.read(entries["byteorder"]) == b"little"


def _plain_name(name: str) -> str:
    if PurePosixPath(name).name != name:
        raise ValueError(f"it names the weights {name!r}")
    return name


def _tensor(meta: Mapping[str, Any], stored: bytearray) -> Tensor:
    """A view of stored bytes, in the shape that the archive says."""
    if meta["layout"] != _STRIDED:
        raise ValueError("it holds weights that are not dense")
    dtype = _TYPES[meta["dtype"]]
    sizes, strides = ([each["as_int"] for each in meta[part]] for part in ("sizes", "strides"))
    offset = meta["storage_offset"]["as_int"]
    if len(sizes) != len(strides) or min([*sizes, *strides, offset], default=0) < 0:
        raise ValueError("its sizes and strides are none")
    if 0 in sizes:
        return torch.zeros(sizes, dtype=dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if (last + 1) * dtype.itemsize > len(stored):
        raise ValueError(f"its weights have {len(stored)} bytes where {(last + 1) * dtype.itemsize} are said")
    return torch.frombuffer(stored, dtype=dtype).as_strided(sizes, strides, offset)
