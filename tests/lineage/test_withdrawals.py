"""Withdrawals: what they reach is said first, then every later audit can heed them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradtrail.errors import NotFoundError, UsageError
from gradtrail.lineage.events.withdrawals import WithdrawalRequest, reach_of, withdraw, withdrawn
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.verify.verifying import verify_ledger


def test_the_reach_of_a_source_is_what_the_audit_kept_of_it(story, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        reach = reach_of(connection, WithdrawalRequest("source", "forum"))
        strangers = reach_of(connection, WithdrawalRequest(example_ids=("train-09",)))
    odd = {f"train-{number:02d}" for number in range(1, 12, 2)}
    assert {example_id for _, example_id in reach.examples} == odd
    assert reach.output_ids == ("inbox:0", "inbox:1")
    assert reach.audit_ids == (story.audit.audit_id,)
    assert reach.model_version_ids == ("digits/1",)
    assert reach.largest_share == pytest.approx(0.75)
    assert (strangers.output_ids, strangers.audit_ids, strangers.largest_share) == ((), (), None)


def test_a_withdrawal_is_recorded_once_with_its_examples_and_verifies(story_ledger: Ledger) -> None:
    request = WithdrawalRequest("source", "forum")
    withdrawal_id, new = withdraw(story_ledger, request, "the forum asked for it")
    assert new
    assert withdraw(story_ledger, request, "again") == (withdrawal_id, False)
    withdraw(story_ledger, WithdrawalRequest(example_ids=("train-02", "train-00")))
    with story_ledger.read() as connection:
        found = withdrawn(connection)
        rows = connection.execute("SELECT count(*) FROM withdrawn_example").fetchall()
    assert found.values == {"source": frozenset({"forum"})}
    assert found.example_ids == {"train-00", "train-02"}
    assert rows == [(8,)]
    assert verify_ledger(story_ledger).ok


def test_a_personal_value_is_withdrawn_without_being_written_down_again(story, empty_ledger: Ledger) -> None:
    manifest = [
        replace(row, attributes={**row.attributes, "author": f"author {place % 3}"})
        for place, row in enumerate(story.manifest)
    ]
    empty_ledger.record_dataset_version(story.dataset, manifest, ["author"])
    withdraw(empty_ledger, WithdrawalRequest("author", "author 1"))
    with empty_ledger.read() as connection:
        assert withdrawn(connection).values == {}
        assert withdrawn(connection).example_ids == {f"train-{number:02d}" for number in (1, 4, 7, 10)}
        assert connection.execute("SELECT attribute, value FROM withdrawal").fetchall() == [(None, None)]


def test_what_no_dataset_version_has_cannot_be_withdrawn(story_ledger: Ledger, all_rows) -> None:
    before = all_rows(story_ledger)
    with pytest.raises(NotFoundError, match="the example train-99"):
        withdraw(story_ledger, WithdrawalRequest(example_ids=("train-01", "train-99")))
    with pytest.raises(NotFoundError, match="with source nowhere"):
        withdraw(story_ledger, WithdrawalRequest("source", "nowhere"))
    with pytest.raises(UsageError, match="about one"):
        WithdrawalRequest()
    assert all_rows(story_ledger) == before


def test_another_withdrawal_gives_another_digest(story_ledger: Ledger) -> None:
    digests = set()
    for request in (WithdrawalRequest("source", "forum"), WithdrawalRequest(example_ids=("train-00",))):
        with story_ledger.read() as connection:
            digests.add(withdrawn(connection).sha256)
        withdraw(story_ledger, request)
    with story_ledger.read() as connection:
        digests.add(withdrawn(connection).sha256)
    assert len(digests) == 3
