-- Files below the home folder are recorded relative to it from here on, so that a home can be moved whole. Rows from
-- before hold absolute paths, whose ends are read. Earlier gradtrails would look for relative paths elsewhere.
--
-- Views and macros: ef4cbf9351d2fddfade07ffa7c060117efd7eb31da69a6924ecb5f04f63ed048

COMMENT ON COLUMN dataset_version.manifest_uri IS 'Where the manifest was first kept: relative to the home folder; absolute before version 13.';
COMMENT ON COLUMN model_version_checkpoint.weights_uri IS 'The safetensors file that is read, relative to the home folder; absolute before version 13.';
COMMENT ON COLUMN gradient_index.table_uri IS 'The LanceDB table: relative to the home folder where it lies there; absolute before version 13.';
COMMENT ON COLUMN report.html_uri IS 'The HTML file of the report, relative to the home folder; absolute before version 13.';
