-- Ready answers: what is asked again and again, as views and table macros.
--
-- Pinned in time. Every row names the event that recorded it, and events are numbered. A macro with the argument
-- `as_of := '<audit id>'` (or the beginning of one) leaves out every row of a later event, so it shows the graph as it was
-- when that audit was recorded.

CREATE OR REPLACE MACRO audit_named(audit_id_or_prefix) AS coalesce(
    (SELECT CASE WHEN count(*) < 2 THEN min(audit_id) ELSE error('more than one audit begins with ' || audit_id_or_prefix) END
        FROM audit WHERE starts_with(audit_id, audit_id_or_prefix)),
    error('there is no audit ' || audit_id_or_prefix));
COMMENT ON MACRO audit_named IS 'The full id of the audit that a text begins. An error when there is none or more than one.';

CREATE OR REPLACE MACRO last_event(as_of) AS CASE
    WHEN as_of IS NULL THEN 9223372036854775807
    ELSE (SELECT event_sequence FROM audit WHERE audit_id = audit_named(as_of))
END;
COMMENT ON MACRO last_event IS 'The event that recorded an audit; for NULL, a number above that of every event.';

-- The lineage graph again, in parts that can be walked over millions of rows: `structure_edge` and `structure_node` are
-- everything but examples and their attributes. Structure is walked edge by edge; influence, membership and
-- attributes are one join each, because an example leads up to its attributes only.

CREATE VIEW structure_node AS
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

CREATE VIEW structure_edge AS
SELECT 'report' AS from_kind, html_sha256 AS from_id, 'reports' AS relation, 'audit' AS to_kind, audit_id AS to_id, event_sequence
FROM report
UNION ALL
SELECT 'audit', audit_id, 'examines', 'output', output_id, event_sequence FROM audit_output
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
FROM example
UNION ALL
SELECT 'example', example_id || '@' || dataset_version_id, 'from_source', 'source', attributes['source'], event_sequence
FROM example WHERE attributes['source'] IS NOT NULL
UNION ALL
SELECT 'example', example_id || '@' || dataset_version_id, 'under_licence', 'licence', attributes['licence'], event_sequence
FROM example WHERE attributes['licence'] IS NOT NULL;
COMMENT ON VIEW edge IS 'Every edge of the lineage graph, from a thing to what it depends on, with the event that first recorded it.';

-- A text as start nodes: an id, or of an example its plain id, which finds it in every dataset version.
CREATE MACRO lineage_start(start_id, start_kind, bound) AS TABLE
SELECT kind, node_id, '' AS example_id, '' AS dataset_version_id
FROM structure_node
WHERE node_id = start_id AND (start_kind IS NULL OR kind = start_kind) AND event_sequence <= bound
UNION ALL
SELECT 'example', example_id || '@' || dataset_version_id, example_id, dataset_version_id
FROM example
WHERE (start_kind IS NULL OR start_kind = 'example') AND event_sequence <= bound
    AND (example_id = start_id OR (starts_with(start_id, example_id) AND example_id || '@' || dataset_version_id = start_id))
UNION ALL
SELECT DISTINCT 'source', start_id, '', ''
FROM example
WHERE (start_kind IS NULL OR start_kind = 'source') AND event_sequence <= bound AND attributes['source'] = start_id
UNION ALL
SELECT DISTINCT 'licence', start_id, '', ''
FROM example
WHERE (start_kind IS NULL OR start_kind = 'licence') AND event_sequence <= bound AND attributes['licence'] = start_id;
COMMENT ON MACRO TABLE lineage_start IS 'The nodes that a text names, among what was recorded up to an event; for upstream and downstream.';

-- upstream_until: what a node depends on. A node enters once, at its smallest depth, by its first parent in id order, so
-- cycles end. Membership (contains) is followed only from the start node, else every output would list the whole
-- training set; members := true follows it everywhere.
CREATE MACRO upstream_until(start_id, start_kind := NULL, max_depth := 1000000, members := false, bound := 9223372036854775807) AS TABLE
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
            SELECT audit_output.*, walked.depth FROM audit_output
            JOIN walked ON walked.kind = 'output' AND walked.node_id = audit_output.output_id
        ) AS examined USING (audit_id, output_id, event_sequence)
        JOIN audit_dataset USING (audit_id)
        WHERE examined.depth < max_depth AND attribution.event_sequence <= bound
        UNION ALL
        SELECT
            example.example_id, example.dataset_version_id, walked.depth + 1, 'contains', 'dataset_version', walked.node_id
        FROM example
        JOIN walked ON walked.kind = 'dataset_version' AND walked.node_id = example.dataset_version_id
        WHERE walked.depth < max_depth AND (members OR walked.depth = 0) AND example.event_sequence <= bound
    )
    GROUP BY example_id, dataset_version_id
), described AS MATERIALIZED (
    SELECT reached.depth + 1 AS depth, example_id || '@' || dataset_version_id AS parent, example.attributes
    FROM example
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

CREATE OR REPLACE MACRO upstream(start_id, start_kind := NULL, max_depth := 1000000, members := false, as_of := NULL) AS TABLE
FROM upstream_until(
    start_id, start_kind := start_kind, max_depth := max_depth, members := members, bound := last_event(as_of)
);
COMMENT ON MACRO TABLE upstream IS
    'What a node depends on, with depth, relation, parent and label. members: with all examples of every dataset version. as_of: as it was at that audit.';

-- downstream_until: what depends on a node. Every edge is followed, backwards.
CREATE MACRO downstream_until(start_id, start_kind := NULL, max_depth := 1000000, bound := 9223372036854775807) AS TABLE
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
        FROM example JOIN start ON start.kind = 'source' AND start.node_id = example.attributes['source']
        WHERE max_depth > 0 AND example.event_sequence <= bound
        UNION ALL
        SELECT example.example_id, example.dataset_version_id, 1, 'under_licence', 'licence', start.node_id
        FROM example JOIN start ON start.kind = 'licence' AND start.node_id = example.attributes['licence']
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

CREATE OR REPLACE MACRO downstream(start_id, start_kind := NULL, max_depth := 1000000, as_of := NULL) AS TABLE
FROM downstream_until(start_id, start_kind := start_kind, max_depth := max_depth, bound := last_event(as_of));
COMMENT ON MACRO TABLE downstream IS
    'What depends on a node, with depth, relation, parent and label. as_of: as it was at that audit.';

-- The blast radius: what some examples touched. The question asked when data must be withdrawn.

CREATE MACRO examples_with(name, wanted) AS TABLE
SELECT dataset_version_id, example_id, event_sequence
FROM example
WHERE CASE
    WHEN name IS NULL THEN list_contains(wanted, example_id) OR list_contains(wanted, attributes['source'])
    WHEN name = 'example_id' THEN list_contains(wanted, example_id)
    ELSE list_contains(wanted, attributes[name])
END;
COMMENT ON MACRO TABLE examples_with IS
    'The examples whose attribute has one of the wanted values; name example_id: with one of these ids; NULL: ids or values of source.';

CREATE MACRO blast_radius_until(name, wanted, bound) AS TABLE
WITH chosen AS MATERIALIZED (
    SELECT dataset_version_id, example_id FROM examples_with(name, wanted) WHERE event_sequence <= bound
), per_dataset AS MATERIALIZED (
    SELECT dataset_version_id, count(*) AS examples FROM chosen GROUP BY dataset_version_id
), concerned AS MATERIALIZED (
    SELECT audit.audit_id, audit.model_version_id, dataset_version_id
    FROM audit JOIN audit_dataset USING (audit_id) JOIN per_dataset USING (dataset_version_id)
    WHERE audit.event_sequence <= bound
), ranked AS MATERIALIZED (
    SELECT
        attribution.audit_id,
        attribution.output_id,
        attribution.side,
        count(*) AS examples,
        min(attribution.rank) AS best_rank,
        sum(abs(attribution.score)) AS mass
    FROM attribution
    JOIN concerned USING (audit_id)
    JOIN chosen USING (dataset_version_id, example_id)
    WHERE attribution.event_sequence <= bound
    GROUP BY ALL
), shared AS MATERIALIZED (
    SELECT share.audit_id, share.output_id, share.side, sum(share.share) AS share
    FROM share JOIN concerned USING (audit_id)
    WHERE share.attribute = coalesce(name, 'source') AND list_contains(wanted, share.value)
        AND share.share > 0 AND share.event_sequence <= bound
    GROUP BY ALL
), influential AS MATERIALIZED (
    SELECT
        example_influence.audit_id, example_influence.side, count(*) AS examples, min(example_influence.rank) AS best_rank,
        sum(example_influence.share) AS share
    FROM example_influence
    JOIN concerned USING (audit_id)
    JOIN chosen USING (dataset_version_id, example_id)
    WHERE example_influence.event_sequence <= bound
    GROUP BY ALL
), touched_audit AS MATERIALIZED (
    SELECT audit_id FROM ranked UNION SELECT audit_id FROM shared UNION SELECT audit_id FROM influential
), found AS (
    SELECT
        'dataset_version' AS kind, dataset_version_id AS id, 'contains them' AS evidence, NULL AS side, examples,
        NULL AS best_rank, NULL AS share, NULL AS audit_id
    FROM per_dataset
    UNION ALL
    SELECT 'model_version', model_version_id, 'trained on them', NULL, examples, NULL, NULL, NULL
    FROM model_version JOIN per_dataset USING (dataset_version_id)
    WHERE model_version.event_sequence <= bound
    UNION ALL
    SELECT 'audit', audit_id, 'among the strongest examples of its outputs', side, NULL, min(best_rank), NULL, audit_id
    FROM ranked GROUP BY audit_id, side
    UNION ALL
    SELECT 'audit', audit_id, 'among the strongest examples over all outputs', side, examples, best_rank, share, audit_id
    FROM influential
    UNION ALL
    SELECT 'audit', audit_id, 'share of the influence on all outputs', side, NULL, NULL, share, audit_id
    FROM shared WHERE output_id IS NULL
    UNION ALL
    SELECT
        'output', ranked.output_id, 'among its strongest examples', ranked.side, ranked.examples, ranked.best_rank,
        ranked.mass / nullif(CASE ranked.side WHEN 'proponent' THEN proponent_mass ELSE abs(opponent_mass) END, 0),
        ranked.audit_id
    FROM ranked JOIN audit_output USING (audit_id, output_id)
    UNION ALL
    SELECT 'output', output_id, 'share of the influence on it', side, NULL, NULL, share, audit_id
    FROM shared WHERE output_id IS NOT NULL
    UNION ALL
    SELECT 'report', html_sha256, 'reports such an audit', NULL, NULL, NULL, NULL, audit_id
    FROM report JOIN touched_audit USING (audit_id)
    WHERE report.event_sequence <= bound
)
SELECT kind, id, evidence, side, examples, best_rank, share, audit_id
FROM found
ORDER BY array_position(['dataset_version', 'model_version', 'audit', 'output', 'report'], kind), share DESC NULLS LAST, id, evidence, side, audit_id;
COMMENT ON MACRO TABLE blast_radius_until IS 'As blast_radius, for several values of an attribute, up to the event with the number bound.';

CREATE MACRO blast_radius(start_id, attribute := NULL, as_of := NULL) AS TABLE
FROM blast_radius_until(attribute, [start_id], last_event(as_of));
COMMENT ON MACRO TABLE blast_radius IS
    'What an example or a source touched: dataset versions, model versions, audits, outputs, reports, each with its evidence; share is the part of the influence. attribute: the name of another attribute, or example_id. What it cannot see: unseen_by_blast_radius.';

-- What the answer of blast_radius leaves open, in numbers. Zero rows of a kind are left out.
CREATE MACRO unseen_until(name, wanted, bound) AS TABLE
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
        SELECT 1 FROM audit_output WHERE audit_output.output_id = output.output_id AND audit_output.event_sequence <= bound)
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

CREATE MACRO unseen_by_blast_radius(start_id, attribute := NULL, as_of := NULL) AS TABLE
FROM unseen_until(attribute, [start_id], last_event(as_of));
COMMENT ON MACRO TABLE unseen_by_blast_radius IS
    'What blast_radius with the same arguments cannot see: how many outputs, scores and examples, and why.';

-- Two audits side by side.

CREATE MACRO compare_audits(a, b) AS TABLE
WITH pair AS MATERIALIZED (
    SELECT audit_named(a) AS first_id, audit_named(b) AS second_id
), chosen AS MATERIALIZED (
    SELECT audit_id = first_id AS is_first, audit_id = second_id AS is_second, audit.*
    FROM audit JOIN pair ON audit_id IN (first_id, second_id)
), said AS (
    SELECT 'method' AS aspect, 'method' AS name, method AS text, NULL::DOUBLE AS figure, is_first, is_second FROM chosen
    UNION ALL
    SELECT 'method', 'parameters', parameters::VARCHAR, NULL, is_first, is_second FROM chosen
    UNION ALL
    SELECT 'method', 'weighting', weighting_id, NULL, is_first, is_second FROM chosen
    UNION ALL
    SELECT 'method', 'policy', policy_sha256, NULL, is_first, is_second FROM chosen
    UNION ALL
    SELECT 'method', 'model version', model_version_id, NULL, is_first, is_second FROM chosen
    UNION ALL
    SELECT 'method', 'dataset version', dataset_version_id, NULL, is_first, is_second
    FROM chosen JOIN audit_dataset USING (audit_id)
    UNION ALL
    SELECT 'method', 'index ' || audit_index.position, index_id, NULL, is_first, is_second
    FROM chosen JOIN audit_index USING (audit_id)
    UNION ALL
    SELECT 'fidelity', fidelity.metric, NULL, arg_max(fidelity.value, fidelity.event_sequence), is_first, is_second
    FROM chosen
    JOIN audit_index USING (audit_id)
    JOIN gradient_index USING (index_id)
    JOIN fidelity ON fidelity.checkpoint_id = gradient_index.checkpoint_id AND fidelity.method = chosen.method
        AND fidelity.weighting_id = chosen.weighting_id AND fidelity.event_sequence < chosen.event_sequence
        AND json_contains(chosen.parameters, fidelity.parameters)
    GROUP BY ALL
    UNION ALL
    SELECT 'outputs', 'audited', NULL, count(*), is_first, is_second FROM chosen JOIN audit_output USING (audit_id) GROUP BY ALL
    UNION ALL
    SELECT 'outputs', 'reproduced', NULL, count_if(reproduced), is_first, is_second
    FROM chosen JOIN audit_output USING (audit_id) GROUP BY ALL
    UNION ALL
    SELECT 'outputs', 'in this audit only', NULL, count(*), is_first, is_second
    FROM chosen JOIN audit_output USING (audit_id)
    WHERE NOT EXISTS (
        SELECT 1 FROM audit_output AS other JOIN chosen AS of_other USING (audit_id)
        WHERE other.output_id = audit_output.output_id AND other.audit_id <> audit_output.audit_id)
    GROUP BY ALL
    UNION ALL
    SELECT 'outputs', 'mean loss', NULL, avg(loss), is_first, is_second FROM chosen JOIN audit_output USING (audit_id) GROUP BY ALL
    UNION ALL
    SELECT 'share', share.side || ', ' || share.attribute || ' ' || share.value, NULL, share.share, is_first, is_second
    FROM chosen JOIN share USING (audit_id) WHERE share.output_id IS NULL
    UNION ALL
    SELECT 'finding', finding.severity || ', ' || finding.rule, NULL, count(*), is_first, is_second
    FROM chosen JOIN finding USING (audit_id) GROUP BY ALL
)
SELECT
    aspect,
    name,
    any_value(shown) FILTER (is_first) AS a,
    any_value(shown) FILTER (is_second) AS b,
    any_value(figure) FILTER (is_second) - any_value(figure) FILTER (is_first) AS difference,
    any_value(shown) FILTER (is_first) IS NOT DISTINCT FROM any_value(shown) FILTER (is_second) AS same
FROM (SELECT *, coalesce(text, CASE WHEN figure = trunc(figure) THEN figure::BIGINT::VARCHAR ELSE figure::VARCHAR END) AS shown FROM said)
GROUP BY aspect, name
ORDER BY array_position(['method', 'fidelity', 'outputs', 'share', 'finding'], aspect), name;
COMMENT ON MACRO TABLE compare_audits IS
    'Two audits side by side: method, fidelity, outputs, shares over all outputs, findings. a and b: their values as text, NULL where an audit has none; difference: b minus a; same: whether they agree.';

-- Ready views.

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
JOIN audit_output USING (audit_id, output_id, event_sequence)
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

CREATE VIEW source_influence_over_time AS
SELECT
    model_version.name AS model,
    audit.model_version_id,
    share.audit_id,
    event.recorded_at AS audited_at,
    share.side,
    share.value AS source,
    share.share,
    share.training_share,
    share.share / nullif(share.training_share, 0) AS ratio,
    share.interval_low,
    share.interval_high,
    share.share - lag(share.share) OVER (
        PARTITION BY model_version.name, share.side, share.value ORDER BY audit.event_sequence
    ) AS change
FROM share
JOIN audit ON audit.audit_id = share.audit_id
JOIN event ON event.sequence = audit.event_sequence
JOIN model_version ON model_version.model_version_id = audit.model_version_id
WHERE share.attribute = 'source' AND share.output_id IS NULL
ORDER BY model, audited_at, side DESC, share DESC;
COMMENT ON VIEW source_influence_over_time IS 'Share of the influence of each source, audit after audit of each model.';
COMMENT ON COLUMN source_influence_over_time.model IS 'Name of the registered model.';
COMMENT ON COLUMN source_influence_over_time.model_version_id IS 'The model version audited.';
COMMENT ON COLUMN source_influence_over_time.audit_id IS 'The audit.';
COMMENT ON COLUMN source_influence_over_time.audited_at IS 'When it was recorded, UTC.';
COMMENT ON COLUMN source_influence_over_time.side IS 'proponent or opponent.';
COMMENT ON COLUMN source_influence_over_time.source IS 'The source.';
COMMENT ON COLUMN source_influence_over_time.share IS 'Its mean share of the influence over the outputs of the audit, 0 to 1.';
COMMENT ON COLUMN source_influence_over_time.training_share IS 'Its share of the training set, 0 to 1.';
COMMENT ON COLUMN source_influence_over_time.ratio IS 'Share over training share; above 1: more than its size explains.';
COMMENT ON COLUMN source_influence_over_time.interval_low IS 'Lower end of the permutation interval.';
COMMENT ON COLUMN source_influence_over_time.interval_high IS 'Upper end of the permutation interval.';
COMMENT ON COLUMN source_influence_over_time.change IS 'Share minus that in the audit of the model before; NULL in the first.';

CREATE VIEW model_version_dataset AS
SELECT
    model_version.model_version_id,
    model_version.name AS model,
    model_version.version,
    model_version.run_id,
    training_run.name AS run,
    training_run.started_at AS trained_at,
    serving_checkpoint.checkpoint_id,
    serving_checkpoint.step AS checkpoint_step,
    model_version.dataset_version_id,
    dataset_version.name AS dataset,
    dataset_version.example_count,
    event.recorded_at
FROM model_version
JOIN training_run ON training_run.run_id = model_version.run_id
JOIN serving_checkpoint ON serving_checkpoint.model_version_id = model_version.model_version_id
JOIN dataset_version ON dataset_version.dataset_version_id = model_version.dataset_version_id
JOIN event ON event.sequence = model_version.event_sequence;
COMMENT ON VIEW model_version_dataset IS 'Which model version was trained on which dataset version, by which run, into which checkpoint.';
COMMENT ON COLUMN model_version_dataset.model_version_id IS 'The model version.';
COMMENT ON COLUMN model_version_dataset.model IS 'Name of the registered model.';
COMMENT ON COLUMN model_version_dataset.version IS 'Number of the version.';
COMMENT ON COLUMN model_version_dataset.run_id IS 'The training run.';
COMMENT ON COLUMN model_version_dataset.run IS 'Name of the run.';
COMMENT ON COLUMN model_version_dataset.trained_at IS 'Start of the training, UTC.';
COMMENT ON COLUMN model_version_dataset.checkpoint_id IS 'The checkpoint that serves.';
COMMENT ON COLUMN model_version_dataset.checkpoint_step IS 'Its training step.';
COMMENT ON COLUMN model_version_dataset.dataset_version_id IS 'The dataset version it was trained on.';
COMMENT ON COLUMN model_version_dataset.dataset IS 'Name of the data set.';
COMMENT ON COLUMN model_version_dataset.example_count IS 'Number of its examples.';
COMMENT ON COLUMN model_version_dataset.recorded_at IS 'When the ledger took the model version in, UTC.';

CREATE VIEW audit_coverage AS
WITH counted AS (
    SELECT audit_id, count(*) AS outputs, count_if(reproduced) AS reproduced FROM audit_output GROUP BY audit_id
), indexed AS (
    SELECT
        audit_id,
        count(*) AS indexes,
        min(covered_parameters / total_parameters) AS parameter_share,
        min(indexed_examples) AS indexed_examples,
        max(total_examples) AS total_examples
    FROM audit_index JOIN gradient_index USING (index_id)
    GROUP BY audit_id
)
SELECT
    audit.audit_id,
    audit.model_version_id,
    event.recorded_at AS audited_at,
    counted.outputs,
    counted.reproduced,
    (SELECT count(*) FROM output
        WHERE output.model_version_id = audit.model_version_id AND output.event_sequence < audit.event_sequence) AS outputs_known,
    (SELECT count(DISTINCT audited.output_id) FROM audit_output AS audited JOIN audit AS earlier USING (audit_id)
        WHERE earlier.model_version_id = audit.model_version_id AND earlier.event_sequence <= audit.event_sequence)
        AS outputs_audited,
    indexed.indexes,
    indexed.parameter_share,
    indexed.indexed_examples,
    indexed.total_examples,
    indexed.total_examples - indexed.indexed_examples AS examples_left_out,
    report.html_uri IS NOT NULL AS reported
FROM audit
JOIN event ON event.sequence = audit.event_sequence
JOIN counted USING (audit_id)
JOIN indexed USING (audit_id)
LEFT JOIN report USING (audit_id);
COMMENT ON VIEW audit_coverage IS 'How much each audit speaks for: of the outputs, of the parameters, of the examples.';
COMMENT ON COLUMN audit_coverage.audit_id IS 'The audit.';
COMMENT ON COLUMN audit_coverage.model_version_id IS 'The model version audited.';
COMMENT ON COLUMN audit_coverage.audited_at IS 'When it was recorded, UTC.';
COMMENT ON COLUMN audit_coverage.outputs IS 'Outputs that it examines.';
COMMENT ON COLUMN audit_coverage.reproduced IS 'Those that the pinned checkpoint emits again.';
COMMENT ON COLUMN audit_coverage.outputs_known IS 'Outputs of the model version that the ledger knew then.';
COMMENT ON COLUMN audit_coverage.outputs_audited IS 'Those of them that this audit or an earlier one examined.';
COMMENT ON COLUMN audit_coverage.indexes IS 'Indexes that it scored against.';
COMMENT ON COLUMN audit_coverage.parameter_share IS 'Share of the parameters that the indexes speak for, 0 to 1; the smallest.';
COMMENT ON COLUMN audit_coverage.indexed_examples IS 'Training examples with a gradient; the fewest of its indexes.';
COMMENT ON COLUMN audit_coverage.total_examples IS 'Training examples of the dataset version.';
COMMENT ON COLUMN audit_coverage.examples_left_out IS 'Training examples without a gradient, so without a score.';
COMMENT ON COLUMN audit_coverage.reported IS 'Whether its report is recorded.';

CREATE VIEW open_findings AS
SELECT
    finding.severity,
    finding.rule,
    finding.message,
    finding.output_id,
    audit.model_version_id,
    finding.audit_id,
    event.recorded_at AS found_at,
    report.html_uri
FROM finding
JOIN audit ON audit.audit_id = finding.audit_id
JOIN event ON event.sequence = audit.event_sequence
LEFT JOIN report ON report.audit_id = finding.audit_id
WHERE NOT EXISTS (
    SELECT 1 FROM audit AS later
    WHERE later.model_version_id = audit.model_version_id AND later.event_sequence > audit.event_sequence
        AND (finding.output_id IS NULL OR EXISTS (
            SELECT 1 FROM audit_output
            WHERE audit_output.audit_id = later.audit_id AND audit_output.output_id = finding.output_id))
)
ORDER BY array_position(['high', 'medium', 'low', 'info'], finding.severity), found_at DESC, finding.position;
COMMENT ON VIEW open_findings IS
    'Findings that no later audit of the same model version has replaced. A finding about one output stays open until that output is audited again.';
COMMENT ON COLUMN open_findings.severity IS 'high, medium, low or info.';
COMMENT ON COLUMN open_findings.rule IS 'Name of the rule.';
COMMENT ON COLUMN open_findings.message IS 'What was found, in a sentence.';
COMMENT ON COLUMN open_findings.output_id IS 'The output concerned; NULL when it is the audit as a whole.';
COMMENT ON COLUMN open_findings.model_version_id IS 'The model version audited.';
COMMENT ON COLUMN open_findings.audit_id IS 'The audit that found it.';
COMMENT ON COLUMN open_findings.found_at IS 'When, UTC.';
COMMENT ON COLUMN open_findings.html_uri IS 'The report; NULL before it is written.';

-- The columns of the views of 002.

COMMENT ON COLUMN edge.from_kind IS 'Kind of the thing that depends.';
COMMENT ON COLUMN edge.from_id IS 'Its id.';
COMMENT ON COLUMN edge.relation IS 'What joins the two, read from left to right.';
COMMENT ON COLUMN edge.to_kind IS 'Kind of what it depends on.';
COMMENT ON COLUMN edge.to_id IS 'Its id.';
COMMENT ON COLUMN edge.event_sequence IS 'The event that recorded the edge first.';
COMMENT ON COLUMN lineage_node.kind IS 'What the node is.';
COMMENT ON COLUMN lineage_node.node_id IS 'Its id; unique within its kind.';
COMMENT ON COLUMN lineage_node.label IS 'Text for people.';
COMMENT ON COLUMN lineage_name.kind IS 'What the node is.';
COMMENT ON COLUMN lineage_name.id IS 'What people call it.';
COMMENT ON COLUMN audit_dataset.audit_id IS 'The audit.';
COMMENT ON COLUMN audit_dataset.dataset_version_id IS 'The dataset version.';
COMMENT ON COLUMN serving_checkpoint.model_version_id IS 'The model version.';
COMMENT ON COLUMN serving_checkpoint.checkpoint_id IS 'Its last checkpoint.';
COMMENT ON COLUMN serving_checkpoint.step IS 'The training step of that checkpoint.';
COMMENT ON COLUMN source_share.audit_id IS 'The audit.';
COMMENT ON COLUMN source_share.model_version_id IS 'The model version audited.';
COMMENT ON COLUMN source_share.output_id IS 'The output; NULL for the mean over the audit.';
COMMENT ON COLUMN source_share.side IS 'proponent or opponent.';
COMMENT ON COLUMN source_share.source IS 'The source.';
COMMENT ON COLUMN source_share.share IS 'Its share of the influence, 0 to 1.';
COMMENT ON COLUMN source_share.training_share IS 'Its share of the training set, 0 to 1.';
COMMENT ON COLUMN source_share.ratio IS 'Share over training share.';
COMMENT ON COLUMN source_share.interval_low IS 'Lower end of the permutation interval, where it was measured.';
COMMENT ON COLUMN source_share.interval_high IS 'Upper end of the permutation interval, where it was measured.';
