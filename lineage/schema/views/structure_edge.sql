CREATE OR REPLACE VIEW structure_edge AS
SELECT 'report' AS from_kind, html_sha256 AS from_id, 'reports' AS relation, 'audit' AS to_kind, audit_id AS to_id, event_sequence
FROM report
UNION ALL
SELECT 'audit', audit_id, 'examines', 'output', output_id, event_sequence FROM standing_audit_output
UNION ALL
SELECT 'audit', audit_id, 'uses', 'index', index_id, event_sequence FROM audit_index
UNION ALL
SELECT 'audit', audit_id, 'weighted_by', 'weighting', weighting_id, event_sequence FROM audit
UNION ALL
SELECT 'index', index_id, 'taken_at', 'checkpoint', checkpoint_id, event_sequence FROM gradient_index
UNION ALL
SELECT 'index', index_id, 'taken_over', 'dataset_version', dataset_version_id, event_sequence FROM gradient_index
UNION ALL
SELECT 'output', output_id, 'produced_by', 'model_version', model_version_id, event_sequence FROM output
UNION ALL
SELECT 'model_version', model_version_id, 'has_weights', 'checkpoint', checkpoint_id, event_sequence FROM model_version_checkpoint
UNION ALL
SELECT 'checkpoint', member.checkpoint_id, 'written_by', 'run', model_version.run_id, model_version.event_sequence
FROM model_version_checkpoint AS member
JOIN model_version ON model_version.model_version_id = member.model_version_id
UNION ALL
SELECT 'run', run_id, 'trained_on', 'dataset_version', dataset_version_id, event_sequence FROM model_version;
COMMENT ON VIEW structure_edge IS 'The edges of the lineage graph but for those that touch examples; an edge may occur once for each event that recorded it.';
COMMENT ON COLUMN structure_edge.from_kind IS 'Kind of the thing that depends.';
COMMENT ON COLUMN structure_edge.from_id IS 'Its id.';
COMMENT ON COLUMN structure_edge.relation IS 'What joins the two, read from left to right.';
COMMENT ON COLUMN structure_edge.to_kind IS 'Kind of what it depends on.';
COMMENT ON COLUMN structure_edge.to_id IS 'Its id.';
COMMENT ON COLUMN structure_edge.event_sequence IS 'The event that recorded the edge.';
