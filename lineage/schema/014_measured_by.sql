-- What measured an index is part of its id from here on: the adapter. Indexes from before do not know it.
--
-- Views and macros: ef4cbf9351d2fddfade07ffa7c060117efd7eb31da69a6924ecb5f04f63ed048

ALTER TABLE model_version ADD COLUMN measured_by MAP(VARCHAR, VARCHAR);
COMMENT ON COLUMN model_version.measured_by IS 'Digests of what decides the numbers of its adapter when it was taken in, by what each is of: the class, source files, options (self.NAME). NULL before version 14.';
ALTER TABLE gradient_index ADD COLUMN adapter VARCHAR;
COMMENT ON COLUMN gradient_index.adapter IS 'Adapter that measured the rows, as module:Class. NULL before version 14.';
ALTER TABLE gradient_index ADD COLUMN adapter_sha256 VARCHAR;
COMMENT ON COLUMN gradient_index.adapter_sha256 IS 'Digest of the source of that adapter''s module. NULL before version 14.';
ALTER TABLE gradient_index ADD COLUMN measured_by MAP(VARCHAR, VARCHAR);
COMMENT ON COLUMN gradient_index.measured_by IS 'Digests of what decided the adapter''s numbers, part of the id, as in model_version. NULL before version 14.';
ALTER TABLE gradient_index ADD COLUMN measured_with MAP(VARCHAR, VARCHAR);
COMMENT ON COLUMN gradient_index.measured_with IS 'Versions of torch, gradtrail and the libraries that the model is built from, when the index was first complete. NULL before version 14.';
COMMENT ON COLUMN gradient_index.index_id IS 'Digest of checkpoint, dataset version, feature configuration and, since version 14, measured_by.';
COMMENT ON TABLE gradient_index IS 'Gradient tables: one per checkpoint, dataset version, feature configuration and adapter.';
