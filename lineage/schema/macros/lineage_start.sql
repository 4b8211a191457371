-- A text as start nodes: an id, or of an example its plain id, which finds it in every dataset version.
CREATE OR REPLACE MACRO lineage_start(start_id, start_kind, bound) AS TABLE
SELECT kind, node_id, '' AS example_id, '' AS dataset_version_id
FROM structure_node
WHERE node_id = start_id AND (start_kind IS NULL OR kind = start_kind) AND event_sequence <= bound
UNION ALL
SELECT 'example', example_id || '@' || dataset_version_id, example_id, dataset_version_id
FROM standing_example
WHERE (start_kind IS NULL OR start_kind = 'example') AND event_sequence <= bound
    AND (example_id = start_id OR (starts_with(start_id, example_id) AND example_id || '@' || dataset_version_id = start_id))
UNION ALL
SELECT DISTINCT 'source', start_id, '', ''
FROM standing_example
WHERE (start_kind IS NULL OR start_kind = 'source') AND event_sequence <= bound AND attributes['source'] = start_id
UNION ALL
SELECT DISTINCT 'licence', start_id, '', ''
FROM standing_example
WHERE (start_kind IS NULL OR start_kind = 'licence') AND event_sequence <= bound AND attributes['licence'] = start_id;
COMMENT ON MACRO TABLE lineage_start IS 'The nodes that a text names, among what was recorded up to an event; for upstream and downstream.';
