-- Kept files that decide scores are pinned: fitted curvature, and which eigenbasis was fitted. Files from before are not.
--
-- Views and macros: ef4cbf9351d2fddfade07ffa7c060117efd7eb31da69a6924ecb5f04f63ed048

CREATE TABLE pinned_file (
    file             VARCHAR NOT NULL,
    revision         BIGINT NOT NULL,
    file_sha256      VARCHAR NOT NULL,
    event_sequence   BIGINT NOT NULL,
    salt             BLOB NOT NULL,
    PRIMARY KEY (file, revision)
);
COMMENT ON TABLE pinned_file IS 'Kept files that can be made anew: curvature and notes on eigenbases, which decide scores, and pages of the report index.';
COMMENT ON COLUMN pinned_file.file IS 'Path relative to the home folder.';
COMMENT ON COLUMN pinned_file.revision IS '1 for the first time it was made; the largest one holds.';
COMMENT ON COLUMN pinned_file.file_sha256 IS 'Digest of the file as it was made.';
COMMENT ON COLUMN pinned_file.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN pinned_file.salt IS '16 random bytes that enter the digest of the row.';

CREATE TRIGGER pinned_file_refuses_update AFTER UPDATE ON pinned_file FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of pinned_file cannot be changed');
CREATE TRIGGER pinned_file_refuses_delete AFTER DELETE ON pinned_file FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of pinned_file cannot be deleted');
