"""Kept files that decide scores: the digest of each as it was made, recorded together with putting it in its place."""

from __future__ import annotations

from collections.abc import Callable

from gradtrail.lineage.chain.appending import append
from gradtrail.lineage.chain.rows import rows_of
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.read.pinned_files import pinned_sha256, times_pinned


def pin_file(ledger: Ledger, file: str, sha256: str, put: Callable[[], object]) -> None:
    """Put a file in its place and record its digest; one that was made again with the same bytes adds nothing.

    Args:
        ledger: where to record it.
        file: its path, relative to the home folder.
        sha256: its digest.
        put: puts it there. Nobody else pins meanwhile, so that the file there is the one that was pinned last.
    """
    with ledger.transaction() as connection:
        if pinned_sha256(connection, file) != sha256:
            revision = times_pinned(connection, file) + 1
            append(connection, "pinned_file", file, [rows_of("pinned_file", [(file, revision, sha256)])])
        put()
