CREATE OR REPLACE VIEW source_watermark AS
SELECT source, watermark.kind, reached, seen, taken, sampled_out, refused, waiting, revision, recorded_at AS moved_at
FROM watermark
JOIN event ON event.sequence = watermark.event_sequence
QUALIFY row_number() OVER (PARTITION BY source ORDER BY revision DESC) = 1;
COMMENT ON VIEW source_watermark IS 'The newest watermark of each source, with the time of the run that moved it.';
COMMENT ON COLUMN source_watermark.source IS 'Name of the source in the settings.';
COMMENT ON COLUMN source_watermark.kind IS 'inbox, sql or traces.';
COMMENT ON COLUMN source_watermark.reached IS 'Newest time of a record that was read, never later than the reading itself; NULL before the first.';
COMMENT ON COLUMN source_watermark.seen IS 'Different records read since the beginning: taken, sampled out and refused ones together.';
COMMENT ON COLUMN source_watermark.taken IS 'Of these, records chosen to be audited.';
COMMENT ON COLUMN source_watermark.sampled_out IS 'Of these, records that the sampling of the source left out.';
COMMENT ON COLUMN source_watermark.refused IS 'Of these, records that could not be used.';
COMMENT ON COLUMN source_watermark.waiting IS 'Taken records that were not recorded as outputs yet.';
COMMENT ON COLUMN source_watermark.revision IS 'How often the watermark of this source moved.';
COMMENT ON COLUMN source_watermark.moved_at IS 'When the run recorded it.';
