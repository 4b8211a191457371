from . import trends as trends
from .building import build_report as build_report
from .history import audit_history as audit_history
from .history import audit_metrics as audit_metrics
from .history import wrong_outputs as wrong_outputs
from .recorded_audits import RecordedAudit as RecordedAudit
from .recorded_audits import ShownAudit as ShownAudit
from .recorded_audits import recorded_audit as recorded_audit
