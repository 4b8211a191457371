-- An index whose gradients were lost is measured again under its id: what the ledger says of its rows since.

CREATE TABLE index_revision (
    index_id         VARCHAR NOT NULL,
    revision         BIGINT NOT NULL,
    table_version    BIGINT NOT NULL,
    rows_sha256      VARCHAR NOT NULL,
    reason           VARCHAR NOT NULL,
    event_sequence   BIGINT NOT NULL,
    salt             BLOB NOT NULL,
    PRIMARY KEY (index_id, revision)
);
COMMENT ON TABLE index_revision IS 'Indexes that were measured again after they were recorded, with the digest that holds since.';
COMMENT ON COLUMN index_revision.index_id IS 'The index.';
COMMENT ON COLUMN index_revision.revision IS '1 for the first time it was measured again; the largest one holds.';
COMMENT ON COLUMN index_revision.table_version IS 'Its pinned version since.';
COMMENT ON COLUMN index_revision.rows_sha256 IS 'Digest of all its rows, in no order, as sealed since. The same machine and libraries give the same digest as before.';
COMMENT ON COLUMN index_revision.reason IS 'Why it was measured again.';
COMMENT ON COLUMN index_revision.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN index_revision.salt IS '16 random bytes that enter the digest of the row.';

CREATE TRIGGER index_revision_refuses_update AFTER UPDATE ON index_revision FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of index_revision cannot be changed');
CREATE TRIGGER index_revision_refuses_delete AFTER DELETE ON index_revision FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of index_revision cannot be deleted');
