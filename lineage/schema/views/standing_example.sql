CREATE OR REPLACE VIEW standing_example AS
SELECT example.* REPLACE (dataset_version.event_sequence AS event_sequence)
FROM example JOIN dataset_version USING (dataset_version_id);
COMMENT ON VIEW standing_example IS 'example, with the event that recorded its dataset version; a row that an erasure recorded anew has a later one.';
COMMENT ON COLUMN standing_example.dataset_version_id IS 'The dataset version that contains the example.';
COMMENT ON COLUMN standing_example.example_id IS 'The stable id the user gave.';
COMMENT ON COLUMN standing_example.position IS 'Place in the manifest, from 0.';
COMMENT ON COLUMN standing_example.content_sha256 IS 'Digest of inputs and target.';
COMMENT ON COLUMN standing_example.attributes IS 'Text by name: source, licence, label, author and more.';
COMMENT ON COLUMN standing_example.event_sequence IS 'The event that recorded the dataset version.';
COMMENT ON COLUMN standing_example.salt IS '16 random bytes that enter the digest of the row.';
