-- The lineage graph. An edge runs from a thing to what it depends on: from_id would not be what it is without to_id.
-- Ids of different kinds may coincide, so a node is a kind and an id. An example is pinned to a dataset version
-- (example_id@dataset_version_id): a later version that gives it another licence must not change the past.

CREATE VIEW audit_dataset AS
SELECT audit_index.audit_id, gradient_index.dataset_version_id
FROM audit_index
JOIN gradient_index ON gradient_index.index_id = audit_index.index_id
WHERE audit_index.position = 0;
COMMENT ON VIEW audit_dataset IS 'The dataset version each audit scored against.';

CREATE VIEW serving_checkpoint AS
SELECT model_version_id, arg_max(checkpoint_id, position) AS checkpoint_id, max(step) AS step
FROM model_version_checkpoint
GROUP BY model_version_id;
COMMENT ON VIEW serving_checkpoint IS 'The last checkpoint of each model version, the one that serves.';

CREATE VIEW lineage_node AS
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

CREATE VIEW lineage_name AS
SELECT DISTINCT kind, CASE kind WHEN 'example' THEN label ELSE node_id END AS id
FROM lineage_node;
COMMENT ON VIEW lineage_name IS 'What people call each node: its id, for an example without the dataset version.';

CREATE VIEW edge AS
SELECT 'report' AS from_kind, html_sha256 AS from_id, 'reports' AS relation, 'audit' AS to_kind, audit_id AS to_id FROM report
UNION ALL
SELECT 'audit', audit_id, 'examines', 'output', output_id FROM audit_output
UNION ALL
SELECT 'audit', audit_id, 'uses', 'index', index_id FROM audit_index
UNION ALL
SELECT 'audit', audit_id, 'weighted_by', 'weighting', weighting_id FROM audit
UNION ALL
SELECT 'index', index_id, 'taken_at', 'checkpoint', checkpoint_id FROM gradient_index
UNION ALL
SELECT 'index', index_id, 'taken_over', 'dataset_version', dataset_version_id FROM gradient_index
UNION ALL
SELECT 'output', output_id, 'produced_by', 'model_version', model_version_id FROM output
UNION ALL
SELECT DISTINCT 'output', attribution.output_id, 'influenced_by', 'example',
    attribution.example_id || '@' || audit_dataset.dataset_version_id
FROM attribution
JOIN audit_dataset ON audit_dataset.audit_id = attribution.audit_id
UNION ALL
SELECT DISTINCT 'model_version', model_version_id, 'has_weights', 'checkpoint', checkpoint_id FROM model_version_checkpoint
UNION ALL
SELECT DISTINCT 'checkpoint', model_version_checkpoint.checkpoint_id, 'written_by', 'run', model_version.run_id
FROM model_version_checkpoint
JOIN model_version ON model_version.model_version_id = model_version_checkpoint.model_version_id
UNION ALL
SELECT DISTINCT 'run', run_id, 'trained_on', 'dataset_version', dataset_version_id FROM model_version
UNION ALL
SELECT 'dataset_version', dataset_version_id, 'contains', 'example', example_id || '@' || dataset_version_id FROM example
UNION ALL
SELECT 'example', example_id || '@' || dataset_version_id, 'from_source', 'source', attributes['source']
FROM example WHERE attributes['source'] IS NOT NULL
UNION ALL
SELECT 'example', example_id || '@' || dataset_version_id, 'under_licence', 'licence', attributes['licence']
FROM example WHERE attributes['licence'] IS NOT NULL;
COMMENT ON VIEW edge IS 'Every edge of the lineage graph, from a thing to what it depends on.';

CREATE VIEW output_lineage AS
SELECT
    attribution.output_id,
    output.produced_at,
    attribution.audit_id,
    audit.method,
    attribution.side,
    attribution.rank,
    attribution.score,
    attribution.example_id,
    example.content_sha256,
    example.attributes['source'] AS source,
    example.attributes['licence'] AS licence,
    example.attributes,
    audit_dataset.dataset_version_id,
    dataset_version.name AS dataset,
    model_version.model_version_id,
    model_version.run_id,
    serving_checkpoint.checkpoint_id,
    serving_checkpoint.step AS checkpoint_step
FROM attribution
JOIN output ON output.output_id = attribution.output_id
JOIN audit ON audit.audit_id = attribution.audit_id
JOIN audit_dataset ON audit_dataset.audit_id = attribution.audit_id
JOIN dataset_version ON dataset_version.dataset_version_id = audit_dataset.dataset_version_id
LEFT JOIN example
    ON example.dataset_version_id = audit_dataset.dataset_version_id AND example.example_id = attribution.example_id
JOIN model_version ON model_version.model_version_id = audit.model_version_id
JOIN serving_checkpoint ON serving_checkpoint.model_version_id = audit.model_version_id;
COMMENT ON VIEW output_lineage IS
    'The whole chain in one row: output, example, source and licence, dataset version, run, checkpoint.';

CREATE VIEW source_share AS
SELECT
    share.audit_id,
    audit.model_version_id,
    share.output_id,
    share.side,
    share.value AS source,
    share.share,
    share.training_share,
    share.share / nullif(share.training_share, 0) AS ratio,
    share.interval_low,
    share.interval_high
FROM share
JOIN audit ON audit.audit_id = share.audit_id
WHERE share.attribute = 'source';
COMMENT ON VIEW source_share IS 'Share of the influence by source; output_id is NULL for the mean over an audit.';

-- The closures. A node enters once, at its smallest depth, by its first parent in id order, so cycles end.
-- An example is reached from its plain example_id in every dataset version that contains it.

-- upstream: what a node depends on. Membership (contains) is followed only from the start node, else every
-- output would list the whole training set; members := true follows it everywhere.
CREATE MACRO upstream(start_id, start_kind := NULL, max_depth := 1000000, members := false) AS TABLE
WITH RECURSIVE closure (kind, node_id, depth, relation, parent_kind, parent) USING KEY (kind, node_id) AS (
    SELECT kind, node_id, 0, '', '', ''
    FROM lineage_node
    WHERE (node_id = start_id OR (kind = 'example' AND label = start_id)) AND (start_kind IS NULL OR kind = start_kind)
    UNION
    SELECT
        edge.to_kind,
        edge.to_id,
        min(closure.depth) + 1,
        arg_min(edge.relation, (edge.from_kind, edge.from_id, edge.relation)),
        arg_min(edge.from_kind, (edge.from_kind, edge.from_id, edge.relation)),
        arg_min(edge.from_id, (edge.from_kind, edge.from_id, edge.relation))
    FROM closure
    JOIN edge ON edge.from_kind = closure.kind AND edge.from_id = closure.node_id
    WHERE closure.depth < max_depth
        AND (edge.relation <> 'contains' OR members OR closure.depth = 0)
        AND NOT EXISTS (
            SELECT 1 FROM recurring.closure AS seen WHERE seen.kind = edge.to_kind AND seen.node_id = edge.to_id
        )
    GROUP BY edge.to_kind, edge.to_id
)
SELECT node_id, kind, depth, relation, parent, parent_kind FROM closure ORDER BY depth, kind, node_id;
COMMENT ON MACRO TABLE upstream IS 'What a node depends on, with depth, relation and parent.';

-- downstream: what depends on a node. Every edge is followed, backwards.
CREATE MACRO downstream(start_id, start_kind := NULL, max_depth := 1000000) AS TABLE
WITH RECURSIVE closure (kind, node_id, depth, relation, parent_kind, parent) USING KEY (kind, node_id) AS (
    SELECT kind, node_id, 0, '', '', ''
    FROM lineage_node
    WHERE (node_id = start_id OR (kind = 'example' AND label = start_id)) AND (start_kind IS NULL OR kind = start_kind)
    UNION
    SELECT
        edge.from_kind,
        edge.from_id,
        min(closure.depth) + 1,
        arg_min(edge.relation, (edge.to_kind, edge.to_id, edge.relation)),
        arg_min(edge.to_kind, (edge.to_kind, edge.to_id, edge.relation)),
        arg_min(edge.to_id, (edge.to_kind, edge.to_id, edge.relation))
    FROM closure
    JOIN edge ON edge.to_kind = closure.kind AND edge.to_id = closure.node_id
    WHERE closure.depth < max_depth
        AND NOT EXISTS (
            SELECT 1 FROM recurring.closure AS seen WHERE seen.kind = edge.from_kind AND seen.node_id = edge.from_id
        )
    GROUP BY edge.from_kind, edge.from_id
)
SELECT node_id, kind, depth, relation, parent, parent_kind FROM closure ORDER BY depth, kind, node_id;
COMMENT ON MACRO TABLE downstream IS 'What depends on a node, with depth, relation and parent.';
