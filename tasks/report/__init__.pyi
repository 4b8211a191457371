from . import linking as linking
from . import trends as trends
from .building import build_report as build_report
from .history import audit_history as audit_history
from .reported_audits import ShownAudit as ShownAudit
from .reported_audits import reported_audit as reported_audit
