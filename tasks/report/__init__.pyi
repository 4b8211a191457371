from . import trends as trends
from .building import build_report as build_report
from .history import audit_history as audit_history
from .history import audit_metrics as audit_metrics
from .history import wrong_outputs as wrong_outputs
from .reported_audits import ReportedAudit as ReportedAudit
from .reported_audits import ShownAudit as ShownAudit
from .reported_audits import reported_audit as reported_audit
