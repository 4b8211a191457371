CREATE OR REPLACE VIEW open_findings AS
SELECT
    finding.severity,
    finding.rule,
    finding.message,
    finding.output_id,
    audit.model_version_id,
    finding.audit_id,
    event.recorded_at AS found_at,
    report.html_uri
FROM finding
JOIN audit ON audit.audit_id = finding.audit_id
JOIN event ON event.sequence = audit.event_sequence
LEFT JOIN report ON report.audit_id = finding.audit_id
WHERE NOT EXISTS (
    SELECT 1 FROM audit AS later
    WHERE later.model_version_id = audit.model_version_id AND later.event_sequence > audit.event_sequence
        AND (finding.output_id IS NULL OR EXISTS (
            SELECT 1 FROM audit_output
            WHERE audit_output.audit_id = later.audit_id AND audit_output.output_id = finding.output_id))
)
ORDER BY array_position(['high', 'medium', 'low', 'info'], finding.severity), found_at DESC, finding.position;
COMMENT ON VIEW open_findings IS
    'Findings that no later audit of the same model version has replaced. A finding about one output stays open until that output is audited again.';
COMMENT ON COLUMN open_findings.severity IS 'high, medium, low or info.';
COMMENT ON COLUMN open_findings.rule IS 'Name of the rule.';
COMMENT ON COLUMN open_findings.message IS 'What was found, in a sentence.';
COMMENT ON COLUMN open_findings.output_id IS 'The output concerned; NULL when it is the audit as a whole.';
COMMENT ON COLUMN open_findings.model_version_id IS 'The model version audited.';
COMMENT ON COLUMN open_findings.audit_id IS 'The audit that found it.';
COMMENT ON COLUMN open_findings.found_at IS 'When, UTC.';
COMMENT ON COLUMN open_findings.html_uri IS 'The report; NULL before it is written.';
