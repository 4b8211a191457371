CREATE OR REPLACE VIEW audit_dataset AS
SELECT audit_index.audit_id, gradient_index.dataset_version_id
FROM audit_index
JOIN gradient_index ON gradient_index.index_id = audit_index.index_id
WHERE audit_index.position = 0;
COMMENT ON VIEW audit_dataset IS 'The dataset version each audit scored against.';
COMMENT ON COLUMN audit_dataset.audit_id IS 'The audit.';
COMMENT ON COLUMN audit_dataset.dataset_version_id IS 'The dataset version.';
