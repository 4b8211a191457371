"""What kind of file holds a model's weights, told from its bytes alone: nothing in it is ever executed."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO, Literal

from torch.serialization import get_unsafe_globals_in_checkpoint

from gradtrail.errors import CheckpointError

Format = Literal["safetensors", "torch_state_dict", "pickle", "torch_export", "unknown"]

_ZIP = b"PK\x03\x04"
_PICKLE_PROTOCOLS = tuple(b"\x80" + bytes([version]) for version in range(2, 6))
_EXPORT_MARKS = {"constants.pkl", "archive_format", "serialized_exported_program.json"}
_SAFETENSORS_HEADER_LIMIT = 100_000_000


def detect_format(path: Path) -> Format:
    """Tell the format by content; the suffix counts for nothing.

    - `safetensors`: a length and a JSON header of tensors, whether or not all of the data follows;
    - `torch_state_dict`: a zip by `torch.save` whose pickle names nothing but tensors and plain containers;
    - `torch_export`: a zip by `torch.export.save` or `torch.jit.save`;
    - `pickle`: a bare pickle, also torch's format before 1.6, or a zip by `torch.save` that names other code.

    Raises:
        CheckpointError: it is no file, is empty or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            if not start:
                raise CheckpointError(f"{path} is empty.", "Register the weights again.")
            if start[:4] == _ZIP:
                return _zip_format(path)
            if _has_safetensors_header(stream, start):
                return "safetensors"
    except FileNotFoundError as fault:
        raise CheckpointError(f"There is no file {path}.", "Check the path, or ingest the model again.") from fault
    except OSError as fault:
        reason = "it is a folder" if path.is_dir() else str(fault)
        raise CheckpointError(f"{path} cannot be read: {reason}.", "Name a file of weights.") from fault
    return "pickle" if start[:2] in _PICKLE_PROTOCOLS else "unknown"


def _has_safetensors_header(stream: BinaryIO, start: bytes) -> bool:
    if len(start) < struct.calcsize("<Q"):
        return False
    (length,) = struct.unpack("<Q", start)
    if length > _SAFETENSORS_HEADER_LIMIT:
        return False
    header = stream.read(length)
    if len(header) < length:
        return header.startswith(b"{")
    try:
        return isinstance(json.loads(header), dict)
    except (ValueError, RecursionError):
        return False


def _zip_format(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
            inner = {name.partition("/")[2] or name for name in archive.namelist()}
    except zipfile.BadZipFile as fault:
        raise CheckpointError(
            f"{path} is a damaged or truncated zip file: {fault}.", "Download or register the weights again."
        ) from fault
    if inner & _EXPORT_MARKS or any(name.startswith("models/") for name in inner):
        return "torch_export"
    if "data.pkl" not in inner:
        return "unknown"
    if packed:
        raise CheckpointError(
            f"{path} holds {packed[0]} compressed, which torch.save never does: a small file could fill the memory.",
            "Save the weights with safetensors.torch.save_file(model.state_dict(), path).",
        )
    try:
        unsafe = get_unsafe_globals_in_checkpoint(str(path))
    except (RuntimeError, ValueError, OSError, KeyError, IndexError, EOFError) as fault:
        raise CheckpointError(
            f"{path} is a damaged file of torch.save: {fault}.", "Download or register the weights again."
        ) from fault
    return "pickle" if unsafe else "torch_state_dict"
