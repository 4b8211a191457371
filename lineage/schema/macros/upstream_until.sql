-- upstream_until: what a node depends on. A node enters once, at its smallest depth, by its first parent in id order, so
-- cycles end. Membership (contains) is followed only from the start node, else every output would list the whole
-- training set; members := true follows it everywhere.
CREATE OR REPLACE MACRO upstream_until(start_id, start_kind := NULL, max_depth := 1000000, members := false, bound := 9223372036854775807) AS TABLE
WITH RECURSIVE start AS MATERIALIZED (
    FROM lineage_start(start_id, start_kind, bound)
), structure (kind, node_id, depth, relation, parent_kind, parent) USING KEY (kind, node_id) AS (
    SELECT kind, node_id, 0, '', '', '' FROM start
    UNION
    SELECT
        edge.to_kind,
        edge.to_id,
        min(structure.depth) + 1,
        arg_min(edge.relation, (edge.from_kind, edge.from_id, edge.relation)),
        arg_min(edge.from_kind, (edge.from_kind, edge.from_id, edge.relation)),
        arg_min(edge.from_id, (edge.from_kind, edge.from_id, edge.relation))
    FROM structure
    JOIN structure_edge AS edge ON edge.from_kind = structure.kind AND edge.from_id = structure.node_id
    WHERE structure.depth < max_depth AND edge.event_sequence <= bound
        AND NOT EXISTS (
            SELECT 1 FROM recurring.structure AS seen WHERE seen.kind = edge.to_kind AND seen.node_id = edge.to_id
        )
    GROUP BY edge.to_kind, edge.to_id
), walked AS MATERIALIZED (
    FROM structure
), reached AS MATERIALIZED (
    SELECT
        example_id,
        dataset_version_id,
        min(depth) AS depth,
        arg_min((relation, parent_kind, parent), (depth, parent_kind, parent, relation)) AS way
    FROM (
        SELECT example_id, dataset_version_id, 0 AS depth, '' AS relation, '' AS parent_kind, '' AS parent
        FROM start WHERE kind = 'example'
        UNION ALL
        SELECT
            attribution.example_id, audit_dataset.dataset_version_id, examined.depth + 1, 'influenced_by', 'output',
            attribution.output_id
        FROM attribution
        -- By the event too: it says in which part of millions of rows the audit lies.
        JOIN (
            SELECT examined.*, walked.depth FROM standing_audit_output AS examined
            JOIN walked ON walked.kind = 'output' AND walked.node_id = examined.output_id
        ) AS examined USING (audit_id, output_id, event_sequence)
        JOIN audit_dataset USING (audit_id)
        WHERE examined.depth < max_depth AND attribution.event_sequence <= bound
        UNION ALL
        SELECT
            example.example_id, example.dataset_version_id, walked.depth + 1, 'contains', 'dataset_version', walked.node_id
        FROM standing_example AS example
        JOIN walked ON walked.kind = 'dataset_version' AND walked.node_id = example.dataset_version_id
        WHERE walked.depth < max_depth AND (members OR walked.depth = 0) AND example.event_sequence <= bound
    )
    GROUP BY example_id, dataset_version_id
), described AS MATERIALIZED (
    SELECT reached.depth + 1 AS depth, example_id || '@' || dataset_version_id AS parent, example.attributes
    FROM standing_example AS example
    JOIN reached USING (dataset_version_id, example_id)
    WHERE reached.depth < max_depth AND example.event_sequence <= bound
), closure AS (
    SELECT kind, node_id, label, depth, relation, parent_kind, parent
    FROM walked LEFT JOIN structure_node USING (kind, node_id)
    WHERE kind NOT IN ('example', 'source', 'licence')
    UNION ALL
    SELECT 'example', example_id || '@' || dataset_version_id, example_id, depth, way[1], way[2], way[3] FROM reached
    UNION ALL
    SELECT kind, node_id, node_id, depth, '', '', '' FROM walked WHERE kind IN ('source', 'licence')
    UNION ALL
    SELECT kind, node_id, node_id, min(depth), any_value(relation), 'example', arg_min(parent, (depth, parent))
    FROM (
        SELECT 'source' AS kind, attributes['source'] AS node_id, 'from_source' AS relation, depth, parent FROM described
        UNION ALL
        SELECT 'licence', attributes['licence'], 'under_licence', depth, parent FROM described
    ) AS attribute
    WHERE node_id IS NOT NULL AND (kind, node_id) NOT IN (SELECT (kind, node_id) FROM start)
    GROUP BY kind, node_id
)
SELECT node_id, kind, depth, relation, parent, parent_kind, coalesce(label, node_id) AS label
FROM closure
ORDER BY depth, kind, node_id;
COMMENT ON MACRO TABLE upstream_until IS 'As upstream, up to the event with the number bound.';
