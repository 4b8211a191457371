"""All audits at a glance: numbered by model in the order of the ledger, with the figures that each recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.read.audit_history import fidelity_events, findings_of, numbered_audits, past_audits
from gradtrail.nouns import OutputResult, Share


def test_audits_are_numbered_in_the_order_they_were_recorded(story, story_ledger: Ledger) -> None:
    later = replace(story.audit, method="influence", outputs=(("inbox:2", "label"),))
    story_ledger.record_audit(
        later,
        method_notes={},
        results=[OutputResult("inbox:2", "a seven", 0.75, False, 8.0, -4.0)],
        attributions=[],
        shares=[Share(None, "proponent", "source", "forum", 0.9, 0.5)],
        influences=[],
        findings=[],
    )
    with story_ledger.read() as connection:
        first, second = past_audits(connection)
        assert past_audits(connection, "digits") == [first, second]
        assert past_audits(connection, "letters") == []
        assert past_audits(connection, audit_ids=[second.audit_id]) == [second]
        assert past_audits(connection, audit_ids=[]) == []
        assert [(each.audit_id, each.number) for each in numbered_audits(connection, "digits")] == [
            (first.audit_id, 1),
            (second.audit_id, 2),
        ]
        measured = fidelity_events(connection)
        assert findings_of(connection, first.audit_id) == list(story.evidence["findings"])
    assert (first.audit_id, second.audit_id) == (story.audit.audit_id, later.audit_id)
    assert (first.number, second.number) == (1, 2)
    assert (first.reported, second.reported) == (True, False)
    assert (second.outputs, second.not_reproduced, second.target) == (1, 1, "label")
    assert [(share.value, share.share) for share in second.shares] == [("forum", 0.9)]
    assert all(share.output_id is None for share in first.shares)
    assert [(rule.rule, rule.severity, rule.count) for rule in first.fired] == [
        ("share_of_licence", "high", 1),
        ("dominating_example", "low", 1),
    ]
    assert (first.findings("high"), first.findings("medium"), second.findings("high")) == (1, 0, 0)
    assert first.parameter_share == pytest.approx(story.index.coverage.parameter_share)
    assert first.index_ids == (story.index.index_id,)
    assert all(sequence for events in measured.values() for sequence in events)
