-- What an erasure records anew stands in the graph where it stood before.
--
-- Where a part of a row must go, erasing deletes the row and records what may stay of it by an event of its own. Questions
-- went by that later event, so that an output whose prediction was erased lost its examples, and an audit of before it
-- no longer showed the output. Now they go by the event of the audit, or of the dataset version, that the row belongs to.

CREATE VIEW standing_audit_output AS
SELECT audit_output.* REPLACE (audit.event_sequence AS event_sequence)
FROM audit_output JOIN audit USING (audit_id);
COMMENT ON VIEW standing_audit_output IS 'audit_output, with the event that recorded the audit; a row that an erasure recorded anew has a later one.';
COMMENT ON COLUMN standing_audit_output.audit_id IS 'The audit.';
COMMENT ON COLUMN standing_audit_output.output_id IS 'The output.';
COMMENT ON COLUMN standing_audit_output.position IS 'Place in the audit, from 0.';
COMMENT ON COLUMN standing_audit_output.target IS 'The target this audit measured: emitted or label.';
COMMENT ON COLUMN standing_audit_output.prediction IS 'What the pinned checkpoint emits, as text.';
COMMENT ON COLUMN standing_audit_output.loss IS 'Loss of the measured target.';
COMMENT ON COLUMN standing_audit_output.reproduced IS 'Whether the pinned checkpoint emits the recorded output again.';
COMMENT ON COLUMN standing_audit_output.proponent_mass IS 'Sum of the positive scores over all examples.';
COMMENT ON COLUMN standing_audit_output.opponent_mass IS 'Sum of the negative scores over all examples.';
COMMENT ON COLUMN standing_audit_output.event_sequence IS 'The event that recorded the audit.';
COMMENT ON COLUMN standing_audit_output.salt IS '16 random bytes that enter the digest of the row.';

CREATE VIEW standing_example AS
SELECT example.* REPLACE (dataset_version.event_sequence AS event_sequence)
FROM example JOIN dataset_version USING (dataset_version_id);
COMMENT ON VIEW standing_example IS 'example, with the event that recorded its dataset version; a row that an erasure recorded anew has a later one.';
COMMENT ON COLUMN standing_example.dataset_version_id IS 'The dataset version that contains the example.';
COMMENT ON COLUMN standing_example.example_id IS 'The stable id the user gave.';
COMMENT ON COLUMN standing_example.position IS 'Place in the manifest, from 0.';
COMMENT ON COLUMN standing_example.content_sha256 IS 'Digest of inputs and target.';
COMMENT ON COLUMN standing_example.attributes IS 'Text by name: source, licence, label, author and more.';
COMMENT ON COLUMN standing_example.event_sequence IS 'The event that recorded the dataset version.';
COMMENT ON COLUMN standing_example.salt IS '16 random bytes that enter the digest of the row.';

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

CREATE OR REPLACE VIEW output_lineage AS
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
    serving_checkpoint.step AS checkpoint_step,
    event.recorded_at AS audited_at
FROM attribution
-- By the event too: it says in which part of millions of rows the audit lies.
JOIN standing_audit_output USING (audit_id, output_id, event_sequence)
JOIN output ON output.output_id = attribution.output_id
JOIN audit ON audit.audit_id = attribution.audit_id
JOIN event ON event.sequence = audit.event_sequence
JOIN audit_dataset ON audit_dataset.audit_id = attribution.audit_id
JOIN dataset_version ON dataset_version.dataset_version_id = audit_dataset.dataset_version_id
LEFT JOIN example
    ON example.dataset_version_id = audit_dataset.dataset_version_id AND example.example_id = attribution.example_id
JOIN model_version ON model_version.model_version_id = audit.model_version_id
JOIN serving_checkpoint ON serving_checkpoint.model_version_id = audit.model_version_id;
COMMENT ON VIEW output_lineage IS
    'The whole chain in one row: output, example, source and licence, dataset version, run, checkpoint.';
COMMENT ON COLUMN output_lineage.output_id IS 'The output.';
COMMENT ON COLUMN output_lineage.produced_at IS 'When the model produced it, UTC.';
COMMENT ON COLUMN output_lineage.audit_id IS 'The audit that scored it.';
COMMENT ON COLUMN output_lineage.method IS 'The method of that audit.';
COMMENT ON COLUMN output_lineage.side IS 'proponent or opponent.';
COMMENT ON COLUMN output_lineage.rank IS 'Place on its side, the strongest first.';
COMMENT ON COLUMN output_lineage.score IS 'Positive: training on the example lowers the loss of the output.';
COMMENT ON COLUMN output_lineage.example_id IS 'The training example.';
COMMENT ON COLUMN output_lineage.content_sha256 IS 'Digest of its inputs and target.';
COMMENT ON COLUMN output_lineage.source IS 'Its source, in the dataset version of the audit.';
COMMENT ON COLUMN output_lineage.licence IS 'Its licence, in the dataset version of the audit.';
COMMENT ON COLUMN output_lineage.attributes IS 'All its attributes by name.';
COMMENT ON COLUMN output_lineage.dataset_version_id IS 'The dataset version the audit scored against.';
COMMENT ON COLUMN output_lineage.dataset IS 'Name of the data set.';
COMMENT ON COLUMN output_lineage.model_version_id IS 'The model version audited.';
COMMENT ON COLUMN output_lineage.run_id IS 'The training run.';
COMMENT ON COLUMN output_lineage.checkpoint_id IS 'The checkpoint that serves.';
COMMENT ON COLUMN output_lineage.checkpoint_step IS 'Its training step.';
COMMENT ON COLUMN output_lineage.audited_at IS 'When the audit was recorded, UTC.';

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

CREATE OR REPLACE MACRO examples_with(name, wanted) AS TABLE
SELECT dataset_version_id, example_id, event_sequence
FROM standing_example
WHERE CASE
    WHEN name IS NULL THEN list_contains(wanted, example_id) OR list_contains(wanted, attributes['source'])
    WHEN name = 'example_id' THEN list_contains(wanted, example_id)
    ELSE list_contains(wanted, attributes[name])
END
UNION ALL
SELECT personal_attribute.dataset_version_id, personal_attribute.example_id, personal_attribute.event_sequence
FROM personal_attribute
WHERE personal_attribute.name = coalesce(name, 'source') AND list_contains(wanted, personal_attribute.value)
    AND NOT (name IS NULL AND list_contains(wanted, personal_attribute.example_id));
COMMENT ON MACRO TABLE examples_with IS
    'The examples whose attribute, personal or not, has one of the wanted values; name example_id: with one of these ids; NULL: ids or values of source.';

CREATE OR REPLACE MACRO unseen_until(name, wanted, bound) AS TABLE
WITH chosen AS MATERIALIZED (
    SELECT dataset_version_id, example_id FROM examples_with(name, wanted) WHERE event_sequence <= bound
), per_dataset AS MATERIALIZED (
    SELECT dataset_version_id, count(*) AS examples FROM chosen GROUP BY dataset_version_id
), trained AS MATERIALIZED (
    SELECT model_version_id FROM model_version JOIN per_dataset USING (dataset_version_id)
    WHERE model_version.event_sequence <= bound
), concerned AS MATERIALIZED (
    SELECT audit.audit_id, per_dataset.dataset_version_id, per_dataset.examples
    FROM audit JOIN audit_dataset USING (audit_id) JOIN per_dataset USING (dataset_version_id)
    WHERE audit.event_sequence <= bound
), left_out AS (
    SELECT gradient_index.index_id, unnest(map_keys(gradient_index.quarantined)) AS example_id, dataset_version_id
    FROM gradient_index JOIN per_dataset USING (dataset_version_id)
    WHERE gradient_index.event_sequence <= bound
), counted AS (
    SELECT 'outputs outside any audit' AS what, count(*) AS number,
        'Nothing was measured of them, though their model was trained on these examples.' AS meaning
    FROM output JOIN trained USING (model_version_id)
    WHERE output.event_sequence <= bound AND NOT EXISTS (
        SELECT 1 FROM standing_audit_output AS examined WHERE examined.output_id = output.output_id AND examined.event_sequence <= bound)
    UNION ALL
    SELECT 'model versions without an audit', count(*), 'They were trained on these examples, and none of their outputs was audited.'
    FROM trained
    WHERE NOT EXISTS (
        SELECT 1 FROM audit WHERE audit.model_version_id = trained.model_version_id AND audit.event_sequence <= bound)
    UNION ALL
    SELECT 'scores that were not kept', sum(concerned.examples) - (
            SELECT count(*) FROM attribution JOIN concerned USING (audit_id) JOIN chosen USING (dataset_version_id, example_id)
            WHERE attribution.event_sequence <= bound),
        'Each audit scored every example and kept the strongest of each output; the others count in shares only.'
    FROM audit_output JOIN concerned USING (audit_id)
    UNION ALL
    SELECT 'audits without shares of this attribute', count(*),
        'They did not sum by it; gradtrail.connect().influence_by() does so from the stored gradients.'
    FROM concerned
    WHERE coalesce(name, 'source') <> 'example_id' AND NOT EXISTS (
        SELECT 1 FROM share WHERE share.audit_id = concerned.audit_id AND share.attribute = coalesce(name, 'source'))
    UNION ALL
    SELECT 'examples left out of an index', count(*), 'They were quarantined while gradients were taken, so they have no score.'
    FROM left_out JOIN chosen USING (dataset_version_id, example_id)
)
SELECT what, number::BIGINT AS number, meaning FROM counted WHERE number > 0;
COMMENT ON MACRO TABLE unseen_until IS 'As unseen_by_blast_radius, for several values of an attribute, up to the event with the number bound.';

-- Erasing a person reaches what quotes the name: shares, findings and withdrawals from before the attribute was declared
-- personal.

COMMENT ON COLUMN erasure.kind IS 'example (attributes and previews), attribute (attributes only), output (payload, prediction, gradients, previews), payload (retention), audit or withdrawal (a name that its rows quoted).';
COMMENT ON COLUMN erasure.subject_id IS 'The example, output, audit or withdrawal concerned.';
