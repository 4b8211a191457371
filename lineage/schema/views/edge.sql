CREATE OR REPLACE VIEW edge AS
SELECT from_kind, from_id, relation, to_kind, to_id, min(event_sequence) AS event_sequence
FROM structure_edge
GROUP BY ALL
UNION ALL
SELECT 'output', attribution.output_id, 'influenced_by', 'example',
    attribution.example_id || '@' || audit_dataset.dataset_version_id, min(attribution.event_sequence)
FROM attribution
JOIN audit_dataset ON audit_dataset.audit_id = attribution.audit_id
GROUP BY attribution.output_id, attribution.example_id, audit_dataset.dataset_version_id
UNION ALL
SELECT 'dataset_version', dataset_version_id, 'contains', 'example', example_id || '@' || dataset_version_id, event_sequence
FROM standing_example
UNION ALL
SELECT 'example', example_id || '@' || dataset_version_id, 'from_source', 'source', attributes['source'], event_sequence
FROM standing_example WHERE attributes['source'] IS NOT NULL
UNION ALL
SELECT 'example', example_id || '@' || dataset_version_id, 'under_licence', 'licence', attributes['licence'], event_sequence
FROM standing_example WHERE attributes['licence'] IS NOT NULL;
COMMENT ON VIEW edge IS 'Every edge of the lineage graph, from a thing to what it depends on, with the event that first recorded it.';
COMMENT ON COLUMN edge.from_kind IS 'Kind of the thing that depends.';
COMMENT ON COLUMN edge.from_id IS 'Its id.';
COMMENT ON COLUMN edge.relation IS 'What joins the two, read from left to right.';
COMMENT ON COLUMN edge.to_kind IS 'Kind of what it depends on.';
COMMENT ON COLUMN edge.to_id IS 'Its id.';
COMMENT ON COLUMN edge.event_sequence IS 'The event that recorded the edge first.';
