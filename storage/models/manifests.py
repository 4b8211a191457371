"""Dataset manifests: one canonical JSON line an example; the sha256 of the file is the dataset version."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from gradtrail.digests import canonical_json, sha256_file, short
from gradtrail.errors import DataError
from gradtrail.nouns import ManifestRow
from gradtrail.storage.files.atomic import replacing


def write_manifest(rows: Iterable[ManifestRow], folder: Path) -> Path:
    """Write a manifest in the given order as `folder/<sha256>.jsonl` and return its path.

    Raises:
        DataError: if it is empty or an example id occurs twice; nothing is left behind then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".manifest-{os.getpid()}.part"
    seen: dict[str, str] = {}
    try:
        with part.open("wb") as stream:
            for row in rows:
                _refuse_repeated(row, seen)
                seen[row.example_id] = row.content_sha256
                line = {
                    "example_id": row.example_id,
                    "content_sha256": row.content_sha256,
                    "attributes": dict(row.attributes),
                }
                stream.write(canonical_json(line) + b"\n")
        if not seen:
            raise DataError(
                "The training set is empty: there is nothing that an output could be attributed to.",
                "Check what training_data() returns.",
            )
        final = folder / f"{sha256_file(part)}.jsonl"
        part.replace(final)
    finally:
        part.unlink(missing_ok=True)
    return final


def read_manifest(path: Path, *, expected_sha256: str = "") -> Iterator[ManifestRow]:
    """Read a manifest line by line.

    Raises:
        DataError: if the file is not the expected one, or a line is not a manifest line.
    """
    if expected_sha256 and (found := sha256_file(path)) != expected_sha256:
        raise DataError(
            f"The manifest {path} was changed: its sha256 is {short(found)}, not {short(expected_sha256)}.",
            "Restore the file, or register the model again.",
        )
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                entry = json.loads(line)
                yield ManifestRow(entry["example_id"], entry["content_sha256"], entry["attributes"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"Line {number} of the manifest {path} is not a manifest line: {error}.",
                    "Register the model again with gradtrail.register.",
                ) from error


def rewrite_attributes(path: Path, attributes: Mapping[str, Mapping[str, str]]) -> str:
    """Write a manifest again with other attributes for the examples named; returns the sha256 of what it holds then.

    The file keeps its name, the digest it was registered under. Doing it again changes nothing.
    """
    with replacing(path) as temporary, temporary.open("wb") as stream:
        for row in read_manifest(path):
            line = {
                "example_id": row.example_id,
                "content_sha256": row.content_sha256,
                "attributes": dict(attributes.get(row.example_id, row.attributes)),
            }
            stream.write(canonical_json(line) + b"\n")
    return sha256_file(path)


def _refuse_repeated(row: ManifestRow, seen: dict[str, str]) -> None:
    if row.example_id not in seen:
        return
    other = "with other content" if seen[row.example_id] != row.content_sha256 else "with the same content"
    raise DataError(
        f"The example id {row.example_id!r} occurs twice in the training set, {other}.",
        "Give every example an id of its own; ids are what a report and a withdrawal refer to.",
    )
