"""Reading an index back row by row: is every expected example there once, whole, and as it was measured?"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from gradtrail.storage.gradients.measured import first_few, row_digests
from gradtrail.storage.gradients.rows import IndexDescription, attribute_lists
from gradtrail.storage.gradients.vector_codes import matrix


class IndexContents:
    """What the batches of an index hold, without their vectors: ids, content digests, row digests, and faults seen."""

    def __init__(self, description: IndexDescription) -> None:
        self.ids: list[str] = []
        self._attribute_names = description.attribute_names
        self._code = description.code
        self._contents: list[str] = []
        self._digests: list[bytes] = []
        self._changed: list[str] = []
        self._not_finite: list[str] = []

    def add(self, batch: pa.RecordBatch) -> None:
        """Take in one batch that holds every column of the table."""
        ids = batch.column("example_id").to_pylist()
        contents = batch.column("content_sha256").to_pylist()
        vectors, norms = self._code.stored(batch), matrix(batch, "squared_norms")
        losses = batch.column("loss").to_numpy(zero_copy_only=False)
        keys = zip(ids, contents, *attribute_lists(batch, self._attribute_names).values(), strict=True)
        digests = row_digests(keys, vectors, losses, norms)
        recorded = batch.column("row_sha256").to_pylist()
        finite = vectors.is_finite() & np.isfinite(losses) & np.isfinite(norms).all(axis=1)
        self.ids += ids
        self._contents += contents
        self._digests += digests
        self._changed += [name for name, now, then in zip(ids, digests, recorded, strict=True) if now != then]
        self._not_finite += [name for name, is_finite in zip(ids, finite, strict=True) if not is_finite]

    def problems(self) -> list[str]:
        """Faults of the rows themselves."""
        found = [
            ("Held more than once", [name for name, count in Counter(self.ids).items() if count > 1]),
            ("Changed since they were measured", self._changed),
            ("Not finite", self._not_finite),
        ]
        return [f"{fault}: {first_few(names)}." for fault, names in found if names]

    def differences(self, expected: Mapping[str, str]) -> list[str]:
        """How ids and contents differ from those expected."""
        return differences(dict(zip(self.ids, self._contents, strict=True)), expected)

    def rows_sha256(self) -> str:
        """One digest of all rows that their order does not change."""
        return hashlib.sha256(b"".join(sorted(self._digests))).hexdigest()


def differences(held: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """How the content digests by id that a table holds differ from those expected, in words."""
    found = [
        ("Missing", [name for name in expected if name not in held]),
        ("Not expected", [name for name in held if name not in expected]),
        ("Of other content", [name for name, content in expected.items() if held.get(name, content) != content]),
    ]
    return [f"{fault}: {first_few(names)}." for fault, names in found if names]
