CREATE OR REPLACE VIEW source_influence_over_time AS
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
