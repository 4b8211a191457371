CREATE OR REPLACE MACRO compare_audits(a, b) AS TABLE
WITH pair AS MATERIALIZED (
    SELECT audit_named(a) AS first_id, audit_named(b) AS second_id
), chosen AS MATERIALIZED (
    SELECT audit_id = first_id AS is_first, audit_id = second_id AS is_second, audit.*
    FROM audit JOIN pair ON audit_id IN (first_id, second_id)
), asked AS (
    SELECT
        audit_id,
        coalesce(parameters ->> 'named_horizon', '') AS horizon,
        (SELECT min_by(target, position) FROM audit_output WHERE audit_output.audit_id = chosen.audit_id) AS target,
        (SELECT list(index_id ORDER BY position) FROM audit_index WHERE audit_index.audit_id = chosen.audit_id) AS index_ids
    FROM chosen
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
    SELECT
        'fidelity', fidelity.metric, NULL,
        first(fidelity.value ORDER BY fidelity.event_sequence DESC, fidelity.fidelity_id), is_first, is_second
    FROM chosen
    JOIN asked USING (audit_id)
    JOIN serving_checkpoint USING (model_version_id)
    JOIN fidelity ON fidelity.checkpoint_id = serving_checkpoint.checkpoint_id AND fidelity.method = chosen.method
        AND fidelity.weighting_id = chosen.weighting_id AND fidelity.event_sequence < chosen.event_sequence
        AND json_contains(chosen.parameters, fidelity.parameters)
        AND fidelity.evidence ->> 'target' = asked.target
        AND CAST(fidelity.evidence -> 'index_ids' AS VARCHAR[]) = asked.index_ids
        AND CASE
            WHEN asked.horizon = '' THEN CAST(fidelity.evidence ->> 'longest' AS BOOLEAN)
            ELSE fidelity.evidence ->> 'horizon' = asked.horizon
        END
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
    'Two audits side by side: method, fidelity, outputs, shares over all outputs, findings. The fidelity is the one that the report prints: after the longest training, or for the named horizon. a and b: their values as text, NULL where an audit has none; difference: b minus a; same: whether they agree.';
