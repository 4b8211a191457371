-- The lineage graph in parts that can be walked over millions of rows: structure_edge and structure_node are everything
-- but examples and their attributes. Structure is walked edge by edge; influence, membership and attributes are one join
-- each, because an example leads up to its attributes only.
CREATE OR REPLACE VIEW structure_node AS
SELECT 'dataset_version' AS kind, dataset_version_id AS node_id, name AS label, event_sequence FROM dataset_version
UNION ALL
SELECT 'run', run_id, name, event_sequence FROM training_run
UNION ALL
SELECT 'checkpoint', checkpoint_id, format || ', ' || byte_size || ' bytes', event_sequence FROM checkpoint
UNION ALL
SELECT 'model_version', model_version_id, model_version_id, event_sequence FROM model_version
UNION ALL
SELECT 'index', index_id, indexed_examples || ' of ' || total_examples || ' examples', event_sequence FROM gradient_index
UNION ALL
SELECT 'weighting', weighting_id, objective, event_sequence FROM weighting
UNION ALL
SELECT 'output', output_id, output_id, event_sequence FROM output
UNION ALL
SELECT 'audit', audit_id, method || ' of ' || model_version_id, event_sequence FROM audit
UNION ALL
SELECT 'report', html_sha256, min(html_uri), min(event_sequence) FROM report GROUP BY html_sha256;
COMMENT ON VIEW structure_node IS 'The nodes of the lineage graph but for examples, sources and licences.';
COMMENT ON COLUMN structure_node.kind IS 'What the node is.';
COMMENT ON COLUMN structure_node.node_id IS 'Its id; unique within its kind.';
COMMENT ON COLUMN structure_node.label IS 'Text for people.';
COMMENT ON COLUMN structure_node.event_sequence IS 'The event that recorded it first.';
