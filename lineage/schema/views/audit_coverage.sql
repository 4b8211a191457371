CREATE OR REPLACE VIEW audit_coverage AS
WITH counted AS (
    SELECT audit_id, count(*) AS outputs, count_if(reproduced) AS reproduced FROM audit_output GROUP BY audit_id
), indexed AS (
    SELECT
        audit_id,
        count(*) AS indexes,
        min(covered_parameters / total_parameters) AS parameter_share,
        min(indexed_examples) AS indexed_examples,
        max(total_examples) AS total_examples
    FROM audit_index JOIN gradient_index USING (index_id)
    GROUP BY audit_id
)
SELECT
    audit.audit_id,
    audit.model_version_id,
    event.recorded_at AS audited_at,
    counted.outputs,
    counted.reproduced,
    (SELECT count(*) FROM output
        WHERE output.model_version_id = audit.model_version_id AND output.event_sequence < audit.event_sequence) AS outputs_known,
    (SELECT count(DISTINCT audited.output_id) FROM audit_output AS audited JOIN audit AS earlier USING (audit_id)
        WHERE earlier.model_version_id = audit.model_version_id AND earlier.event_sequence <= audit.event_sequence)
        AS outputs_audited,
    indexed.indexes,
    indexed.parameter_share,
    indexed.indexed_examples,
    indexed.total_examples,
    indexed.total_examples - indexed.indexed_examples AS examples_left_out,
    report.html_uri IS NOT NULL AS reported
FROM audit
JOIN event ON event.sequence = audit.event_sequence
JOIN counted USING (audit_id)
JOIN indexed USING (audit_id)
LEFT JOIN report USING (audit_id);
COMMENT ON VIEW audit_coverage IS 'How much each audit speaks for: of the outputs, of the parameters, of the examples.';
COMMENT ON COLUMN audit_coverage.audit_id IS 'The audit.';
COMMENT ON COLUMN audit_coverage.model_version_id IS 'The model version audited.';
COMMENT ON COLUMN audit_coverage.audited_at IS 'When it was recorded, UTC.';
COMMENT ON COLUMN audit_coverage.outputs IS 'Outputs that it examines.';
COMMENT ON COLUMN audit_coverage.reproduced IS 'Those that the pinned checkpoint emits again.';
COMMENT ON COLUMN audit_coverage.outputs_known IS 'Outputs of the model version that the ledger knew then.';
COMMENT ON COLUMN audit_coverage.outputs_audited IS 'Those of them that this audit or an earlier one examined.';
COMMENT ON COLUMN audit_coverage.indexes IS 'Indexes that it scored against.';
COMMENT ON COLUMN audit_coverage.parameter_share IS 'Share of the parameters that the indexes speak for, 0 to 1; the smallest.';
COMMENT ON COLUMN audit_coverage.indexed_examples IS 'Training examples with a gradient; the fewest of its indexes.';
COMMENT ON COLUMN audit_coverage.total_examples IS 'Training examples of the dataset version.';
COMMENT ON COLUMN audit_coverage.examples_left_out IS 'Training examples without a gradient, so without a score.';
COMMENT ON COLUMN audit_coverage.reported IS 'Whether its report is recorded.';
