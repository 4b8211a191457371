-- What the checks before an index found is kept with it, for reports.
--
-- Views and macros: ef4cbf9351d2fddfade07ffa7c060117efd7eb31da69a6924ecb5f04f63ed048

ALTER TABLE gradient_index ADD COLUMN checks MAP(VARCHAR, DOUBLE);
COMMENT ON COLUMN gradient_index.checks IS 'Largest relative differences on drawn examples before the rows were measured: losses (alone against in a batch), gradients (in a batch against autograd of one example), rounding (half precision against float32; only there). NULL before version 15.';
