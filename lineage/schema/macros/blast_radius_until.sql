CREATE OR REPLACE MACRO blast_radius_until(name, wanted, bound) AS TABLE
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
