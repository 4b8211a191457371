-- downstream_until: what depends on a node. Every edge is followed, backwards.
CREATE OR REPLACE MACRO downstream_until(start_id, start_kind := NULL, max_depth := 1000000, bound := 9223372036854775807) AS TABLE
WITH RECURSIVE start AS MATERIALIZED (
    FROM lineage_start(start_id, start_kind, bound)
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
        SELECT example.example_id, example.dataset_version_id, 1, 'from_source', 'source', start.node_id
        FROM standing_example AS example JOIN start ON start.kind = 'source' AND start.node_id = example.attributes['source']
        WHERE max_depth > 0 AND example.event_sequence <= bound
        UNION ALL
        SELECT example.example_id, example.dataset_version_id, 1, 'under_licence', 'licence', start.node_id
        FROM standing_example AS example JOIN start ON start.kind = 'licence' AND start.node_id = example.attributes['licence']
        WHERE max_depth > 0 AND example.event_sequence <= bound
    )
    GROUP BY example_id, dataset_version_id
), touched AS MATERIALIZED (
    SELECT kind, node_id, min(depth) AS depth, arg_min((relation, parent), (depth, parent, relation)) AS way
    FROM (
        SELECT
            'output' AS kind, attribution.output_id AS node_id, reached.depth + 1 AS depth, 'influenced_by' AS relation,
            attribution.example_id || '@' || audit_dataset.dataset_version_id AS parent
        FROM attribution
        JOIN audit_dataset USING (audit_id)
        JOIN reached USING (example_id, dataset_version_id)
        WHERE reached.depth < max_depth AND attribution.event_sequence <= bound
        UNION ALL
        SELECT 'dataset_version', dataset_version_id, depth + 1, 'contains', example_id || '@' || dataset_version_id
        FROM reached
        WHERE depth < max_depth
    )
    GROUP BY kind, node_id
), structure (kind, node_id, depth, relation, parent_kind, parent) USING KEY (kind, node_id) AS (
    SELECT kind, node_id, min(depth), arg_min(relation, depth), arg_min(parent_kind, depth), arg_min(parent, depth)
    FROM (
        SELECT kind, node_id, 0 AS depth, '' AS relation, '' AS parent_kind, '' AS parent FROM start
        UNION ALL
        SELECT kind, node_id, depth, way[1], 'example', way[2] FROM touched
    )
    GROUP BY kind, node_id
    UNION
    -- A node may enter again at a smaller depth: the walk begins at several depths at once.
    SELECT
        edge.from_kind,
        edge.from_id,
        min(structure.depth) + 1,
        arg_min(edge.relation, (structure.depth, edge.to_kind, edge.to_id, edge.relation)),
        arg_min(edge.to_kind, (structure.depth, edge.to_kind, edge.to_id, edge.relation)),
        arg_min(edge.to_id, (structure.depth, edge.to_kind, edge.to_id, edge.relation))
    FROM structure
    JOIN structure_edge AS edge ON edge.to_kind = structure.kind AND edge.to_id = structure.node_id
    WHERE structure.depth < max_depth AND edge.event_sequence <= bound
        AND NOT EXISTS (
            SELECT 1 FROM recurring.structure AS seen
            WHERE seen.kind = edge.from_kind AND seen.node_id = edge.from_id AND seen.depth <= structure.depth + 1
        )
    GROUP BY edge.from_kind, edge.from_id
), closure AS (
    SELECT kind, node_id, label, depth, relation, parent_kind, parent
    FROM structure LEFT JOIN structure_node USING (kind, node_id)
    WHERE kind <> 'example'
    UNION ALL
    SELECT 'example', example_id || '@' || dataset_version_id, example_id, depth, way[1], way[2], way[3] FROM reached
)
SELECT node_id, kind, depth, relation, parent, parent_kind, coalesce(label, node_id) AS label
FROM closure
ORDER BY depth, kind, node_id;
COMMENT ON MACRO TABLE downstream_until IS 'As downstream, up to the event with the number bound.';
