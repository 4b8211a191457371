CREATE OR REPLACE VIEW lineage_node AS
SELECT 'dataset_version' AS kind, dataset_version_id AS node_id, name AS label FROM dataset_version
UNION ALL
SELECT 'example', example_id || '@' || dataset_version_id, example_id FROM example
UNION ALL
SELECT DISTINCT 'source', attributes['source'], attributes['source'] FROM example WHERE attributes['source'] IS NOT NULL
UNION ALL
SELECT DISTINCT 'licence', attributes['licence'], attributes['licence'] FROM example WHERE attributes['licence'] IS NOT NULL
UNION ALL
SELECT 'run', run_id, name FROM training_run
UNION ALL
SELECT 'checkpoint', checkpoint_id, format || ', ' || byte_size || ' bytes' FROM checkpoint
UNION ALL
SELECT 'model_version', model_version_id, model_version_id FROM model_version
UNION ALL
SELECT 'index', index_id, indexed_examples || ' of ' || total_examples || ' examples' FROM gradient_index
UNION ALL
SELECT 'weighting', weighting_id, objective FROM weighting
UNION ALL
SELECT 'output', output_id, output_id FROM output
UNION ALL
SELECT 'audit', audit_id, method || ' of ' || model_version_id FROM audit
UNION ALL
SELECT DISTINCT 'report', html_sha256, html_uri FROM report;
COMMENT ON VIEW lineage_node IS 'Every node of the lineage graph: kind, id, and a label for people.';
COMMENT ON COLUMN lineage_node.kind IS 'What the node is.';
COMMENT ON COLUMN lineage_node.node_id IS 'Its id; unique within its kind.';
COMMENT ON COLUMN lineage_node.label IS 'Text for people.';
