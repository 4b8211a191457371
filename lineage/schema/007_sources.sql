-- Where outputs come from: how far each source was read, and how many of its records were taken.

CREATE TABLE watermark (
    source          VARCHAR NOT NULL,
    revision        BIGINT NOT NULL,
    kind            VARCHAR NOT NULL,
    reached         TIMESTAMPTZ,
    seen            BIGINT NOT NULL,
    taken           BIGINT NOT NULL,
    sampled_out     BIGINT NOT NULL,
    refused         BIGINT NOT NULL,
    waiting         BIGINT NOT NULL,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL,
    PRIMARY KEY (source, revision)
);
COMMENT ON TABLE watermark IS 'How far each source of outputs was read: at most one row a run, only when something moved; the largest revision holds.';
COMMENT ON COLUMN watermark.source IS 'Name of the source in the settings.';
COMMENT ON COLUMN watermark.revision IS '1 for the first row of a source, one more for each later one.';
COMMENT ON COLUMN watermark.kind IS 'inbox, sql or traces.';
COMMENT ON COLUMN watermark.reached IS 'Newest time of a record that was read, never later than the reading itself; NULL before the first.';
COMMENT ON COLUMN watermark.seen IS 'Different records read since the beginning: taken, sampled out and refused ones together.';
COMMENT ON COLUMN watermark.taken IS 'Of these, records chosen to be audited.';
COMMENT ON COLUMN watermark.sampled_out IS 'Of these, records that the sampling of the source left out.';
COMMENT ON COLUMN watermark.refused IS 'Of these, records that could not be used.';
COMMENT ON COLUMN watermark.waiting IS 'Taken records that were not recorded as outputs yet: their model version is not ingested, or the run was full.';
COMMENT ON COLUMN watermark.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN watermark.salt IS '16 random bytes that enter the digest of the row.';

CREATE VIEW source_watermark AS
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

CREATE TRIGGER watermark_refuses_update AFTER UPDATE ON watermark FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of watermark cannot be changed');
CREATE TRIGGER watermark_refuses_delete AFTER DELETE ON watermark FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of watermark cannot be deleted');
