CREATE OR REPLACE VIEW lineage_name AS
SELECT DISTINCT kind, CASE kind WHEN 'example' THEN label ELSE node_id END AS id
FROM lineage_node;
COMMENT ON VIEW lineage_name IS 'What people call each node: its id, for an example without the dataset version.';
COMMENT ON COLUMN lineage_name.kind IS 'What the node is.';
COMMENT ON COLUMN lineage_name.id IS 'What people call it.';
