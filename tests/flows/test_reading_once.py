"""What a run reads, it reads once: counted by the files that Python opens and the openings of the ledger."""

import sys
from collections import Counter
from pathlib import Path

import duckdb
import pytest

from gradtrail.digests import sha256_file
from gradtrail.flows.audit import audit
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.storage.models.checkpoints import read_weights

MODEL = "tiny@champion"
OPENINGS_OF_AN_EMPTY_RUN = 3
_counted: list[Counter] = []


def _count(event, arguments):
    if _counted and event == "open" and isinstance(arguments[0], str):
        _counted[-1][Path(arguments[0]).name] += 1


sys.addaudithook(_count)


@pytest.fixture
def opened():
    """How often each file was opened by Python meanwhile."""
    _counted.append(Counter())
    yield _counted[-1]
    _counted.pop()


@pytest.fixture
def indexed(tiny, prefect_server):
    tiny.register()
    ingest(tiny.workspace, MODEL)
    index(tiny.workspace, MODEL)
    return tiny


def test_an_audit_reads_its_weights_once(indexed, opened):
    indexed.drop("first.jsonl", indexed.record(0))
    audit(indexed.workspace, MODEL)  # fits the curvature, for which it reads them too
    [weights] = indexed.workspace.checkpoints.glob("*.safetensors")
    opened.clear()
    read_weights(weights, expected_sha256=sha256_file(weights))
    once = opened[weights.name] - 1  # that for this test's own digest
    indexed.drop("second.jsonl", *(indexed.record(number) for number in range(1, 4)))
    opened.clear()
    assert audit(indexed.workspace, MODEL).output_count == 3
    assert opened[weights.name] == once > 0


def test_a_run_that_finds_nothing_new_opens_the_ledger_three_times(indexed, monkeypatch):
    audit(indexed.workspace, MODEL)
    connect, openings = duckdb.connect, []

    def counted(database, *rest, **more):
        # A connection beside an open one shares what that has loaded.
        openings.append(database)
        return connect(database, *rest, **more)

    monkeypatch.setattr(duckdb, "connect", counted)
    assert audit(indexed.workspace, MODEL).made == ()
    ledger = str(indexed.workspace.ledger().paths.database)
    beside = 2  # what resolving the audit asks while it holds the ledger open
    assert openings.count(ledger) <= OPENINGS_OF_AN_EMPTY_RUN + beside
