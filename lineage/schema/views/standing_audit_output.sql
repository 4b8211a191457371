CREATE OR REPLACE VIEW standing_audit_output AS
SELECT audit_output.* REPLACE (audit.event_sequence AS event_sequence)
FROM audit_output JOIN audit USING (audit_id);
COMMENT ON VIEW standing_audit_output IS 'audit_output, with the event that recorded the audit; a row that an erasure recorded anew has a later one.';
COMMENT ON COLUMN standing_audit_output.audit_id IS 'The audit.';
COMMENT ON COLUMN standing_audit_output.output_id IS 'The output.';
COMMENT ON COLUMN standing_audit_output.position IS 'Place in the audit, from 0.';
COMMENT ON COLUMN standing_audit_output.target IS 'The target this audit measured: emitted or label.';
COMMENT ON COLUMN standing_audit_output.prediction IS 'What the pinned checkpoint emits, as text.';
COMMENT ON COLUMN standing_audit_output.loss IS 'Loss of the measured target.';
COMMENT ON COLUMN standing_audit_output.reproduced IS 'Whether the pinned checkpoint emits the recorded output again.';
COMMENT ON COLUMN standing_audit_output.proponent_mass IS 'Sum of the positive scores over all examples.';
COMMENT ON COLUMN standing_audit_output.opponent_mass IS 'Sum of the negative scores over all examples.';
COMMENT ON COLUMN standing_audit_output.event_sequence IS 'The event that recorded the audit.';
COMMENT ON COLUMN standing_audit_output.salt IS '16 random bytes that enter the digest of the row.';
