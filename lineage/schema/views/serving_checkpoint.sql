CREATE OR REPLACE VIEW serving_checkpoint AS
SELECT model_version_id, arg_max(checkpoint_id, position) AS checkpoint_id, max(step) AS step
FROM model_version_checkpoint
GROUP BY model_version_id;
COMMENT ON VIEW serving_checkpoint IS 'The last checkpoint of each model version, the one that serves.';
COMMENT ON COLUMN serving_checkpoint.model_version_id IS 'The model version.';
COMMENT ON COLUMN serving_checkpoint.checkpoint_id IS 'Its last checkpoint.';
COMMENT ON COLUMN serving_checkpoint.step IS 'The training step of that checkpoint.';
