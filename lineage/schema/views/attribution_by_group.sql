CREATE OR REPLACE VIEW attribution_by_group AS
SELECT
    group_contribution.audit_id,
    audit.model_version_id,
    audit.method,
    group_contribution.output_id,
    group_contribution.side,
    row_number() OVER (
        PARTITION BY group_contribution.audit_id, group_contribution.output_id, group_contribution.side
        ORDER BY group_contribution.position
    ) - 1 AS depth,
    group_contribution.group_name,
    group_contribution.share,
    coalesce(weighting.group_weights[group_contribution.group_name], 1) AS weight
FROM group_contribution
JOIN audit ON audit.audit_id = group_contribution.audit_id
JOIN weighting ON weighting.weighting_id = audit.weighting_id;
COMMENT ON VIEW attribution_by_group IS 'Parts of the kept attributions by parameter group, with its weight; output_id is NULL for the mean over an audit.';
