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
