CREATE OR REPLACE VIEW model_version_dataset AS
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
