"""Withdrawing training data: its reach first, then the ledger's word, which every later audit heeds."""

from __future__ import annotations

from dataclasses import dataclass

from gradtrail.lineage.events import withdrawals
from gradtrail.lineage.events.withdrawals import Reach, WithdrawalRequest
from gradtrail.tasks.core.workspace import Workspace


@dataclass(frozen=True)
class WithdrawalOutcome:
    """What a withdrawal concerns; `withdrawal_id` is empty when it was only asked about, `new` False when repeated."""

    reach: Reach
    withdrawal_id: str = ""
    new: bool = False


def reach_of_withdrawal(workspace: Workspace, request: WithdrawalRequest) -> WithdrawalOutcome:
    """What a withdrawal would concern; changes nothing.

    Raises:
        NotFoundError: no dataset version has such an example.
    """
    with workspace.ledger().read() as connection:
        return WithdrawalOutcome(withdrawals.reach_of(connection, request))


def withdraw_data(workspace: Workspace, request: WithdrawalRequest, reason: str | None = None) -> WithdrawalOutcome:
    """Record a withdrawal and publish the ledger; doing it again changes nothing.

    Raises:
        NotFoundError: no dataset version has such an example.
    """
    asked = reach_of_withdrawal(workspace, request)
    ledger = workspace.ledger()
    withdrawal_id, new = withdrawals.withdraw(ledger, request, reason)
    ledger.publish_snapshot()
    return WithdrawalOutcome(asked.reach, withdrawal_id, new)
