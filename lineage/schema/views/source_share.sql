CREATE OR REPLACE VIEW source_share AS
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
