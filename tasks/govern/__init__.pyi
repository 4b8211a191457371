from .gating import gated_audits as gated_audits
from .gating import require_gate as require_gate
from .gating import write_gate as write_gate
from .verifying import Verification as Verification
from .verifying import verify_workspace as verify_workspace
from .withdrawing import WithdrawalOutcome as WithdrawalOutcome
from .withdrawing import reach_of_withdrawal as reach_of_withdrawal
from .withdrawing import withdraw_data as withdraw_data
