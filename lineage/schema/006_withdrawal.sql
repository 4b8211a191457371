-- Withdrawal, erasure and signatures: what happens to data and reports after an audit.
--
-- personal_attribute is the one table whose rows may be deleted. Whoever deletes rows, of it or of a table that holds
-- such text from before it was declared personal, records an erasure with the place of each row's commitment.
-- Ledgers from before this version keep attributes where they were, in example.attributes.

CREATE TABLE withdrawal (
    withdrawal_id   VARCHAR NOT NULL,
    attribute       VARCHAR,
    value           VARCHAR,
    example_count   BIGINT NOT NULL,
    reason          VARCHAR,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL,
    PRIMARY KEY (withdrawal_id)
);
COMMENT ON TABLE withdrawal IS 'Training data that somebody withdrew: every later audit flags it where it matters.';
COMMENT ON COLUMN withdrawal.withdrawal_id IS 'Digest of what was withdrawn: attribute and value, or the example ids.';
COMMENT ON COLUMN withdrawal.attribute IS 'The attribute whose value was withdrawn; NULL when single examples were.';
COMMENT ON COLUMN withdrawal.value IS 'Its value; later dataset versions that carry it are withdrawn too.';
COMMENT ON COLUMN withdrawal.example_count IS 'Examples it concerned when it was recorded, over all dataset versions.';
COMMENT ON COLUMN withdrawal.reason IS 'Why, in the words of who withdrew it.';
COMMENT ON COLUMN withdrawal.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN withdrawal.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE withdrawn_example (
    withdrawal_id       VARCHAR NOT NULL,
    dataset_version_id  VARCHAR NOT NULL,
    example_id          VARCHAR NOT NULL,
    event_sequence      BIGINT NOT NULL,
    salt                BLOB NOT NULL,
    PRIMARY KEY (withdrawal_id, dataset_version_id, example_id)
);
COMMENT ON TABLE withdrawn_example IS 'The examples that each withdrawal concerned, by dataset version.';
COMMENT ON COLUMN withdrawn_example.withdrawal_id IS 'The withdrawal.';
COMMENT ON COLUMN withdrawn_example.dataset_version_id IS 'The dataset version that contains the example.';
COMMENT ON COLUMN withdrawn_example.example_id IS 'The example.';
COMMENT ON COLUMN withdrawn_example.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN withdrawn_example.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE audit_signature (
    audit_id           VARCHAR NOT NULL,
    public_key_sha256  VARCHAR NOT NULL,
    public_key         VARCHAR NOT NULL,
    statement          VARCHAR NOT NULL,
    signature          VARCHAR NOT NULL,
    event_sequence     BIGINT NOT NULL,
    salt               BLOB NOT NULL,
    PRIMARY KEY (audit_id)
);
COMMENT ON TABLE audit_signature IS 'Ed25519 signatures of audits: one an audit, made before its report is written.';
COMMENT ON COLUMN audit_signature.audit_id IS 'The audit.';
COMMENT ON COLUMN audit_signature.public_key_sha256 IS 'Fingerprint: sha256 of the 32 bytes of the public key.';
COMMENT ON COLUMN audit_signature.public_key IS 'The public key as 64 hexadecimal digits.';
COMMENT ON COLUMN audit_signature.statement IS 'What was signed: canonical JSON of audit id, Merkle root and event hash.';
COMMENT ON COLUMN audit_signature.signature IS 'The signature as 128 hexadecimal digits.';
COMMENT ON COLUMN audit_signature.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN audit_signature.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE personal_attribute (
    dataset_version_id  VARCHAR NOT NULL,
    example_id          VARCHAR NOT NULL,
    name                VARCHAR NOT NULL,
    value               VARCHAR NOT NULL,
    event_sequence      BIGINT NOT NULL,
    salt                BLOB NOT NULL,
    PRIMARY KEY (dataset_version_id, example_id, name)
);
COMMENT ON TABLE personal_attribute IS 'The one erasable table: attributes of examples that the setting personal_attributes names.';
COMMENT ON COLUMN personal_attribute.dataset_version_id IS 'The dataset version that contains the example.';
COMMENT ON COLUMN personal_attribute.example_id IS 'The example.';
COMMENT ON COLUMN personal_attribute.name IS 'Name of the attribute, for example author.';
COMMENT ON COLUMN personal_attribute.value IS 'Its value.';
COMMENT ON COLUMN personal_attribute.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN personal_attribute.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE erasure (
    erasure_id      VARCHAR NOT NULL,
    position        BIGINT NOT NULL,
    kind            VARCHAR NOT NULL,
    subject_id      VARCHAR NOT NULL,
    reason          VARCHAR,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL,
    PRIMARY KEY (erasure_id, position)
);
COMMENT ON TABLE erasure IS 'Tombstones: what was erased, one row a subject. What it said is nowhere.';
COMMENT ON COLUMN erasure.erasure_id IS 'Digest of what the erasure removed.';
COMMENT ON COLUMN erasure.position IS 'Place among the subjects of the erasure, from 0.';
COMMENT ON COLUMN erasure.kind IS 'example (attributes and previews), attribute (attributes only), output (payload, prediction, gradients, previews) or payload (retention).';
COMMENT ON COLUMN erasure.subject_id IS 'The example or output concerned.';
COMMENT ON COLUMN erasure.reason IS 'Why, in the words of who erased it.';
COMMENT ON COLUMN erasure.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN erasure.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE erased_row (
    erased_event    BIGINT NOT NULL,
    table_name      VARCHAR NOT NULL,
    position        BIGINT NOT NULL,
    erasure_id      VARCHAR NOT NULL,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL,
    PRIMARY KEY (erased_event, table_name, position)
);
COMMENT ON TABLE erased_row IS 'The rows an erasure deleted, by the place of their commitment: so verify can tell erasure from tampering.';
COMMENT ON COLUMN erased_row.erased_event IS 'The event that had recorded the row.';
COMMENT ON COLUMN erased_row.table_name IS 'The table it was in.';
COMMENT ON COLUMN erased_row.position IS 'Its position in row_commitment, among the rows of that event and table.';
COMMENT ON COLUMN erased_row.erasure_id IS 'The erasure that deleted it.';
COMMENT ON COLUMN erased_row.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN erased_row.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE file_revision (
    kind            VARCHAR NOT NULL,
    subject_id      VARCHAR NOT NULL,
    revision        BIGINT NOT NULL,
    file_sha256     MAP(VARCHAR, VARCHAR) NOT NULL,
    reason          VARCHAR NOT NULL,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL,
    PRIMARY KEY (kind, subject_id, revision)
);
COMMENT ON TABLE file_revision IS 'Files that were written again after they were recorded, with the digests that hold since.';
COMMENT ON COLUMN file_revision.kind IS 'report or manifest.';
COMMENT ON COLUMN file_revision.subject_id IS 'The audit, or the dataset version.';
COMMENT ON COLUMN file_revision.revision IS '1 for the first rewriting; the largest one holds.';
COMMENT ON COLUMN file_revision.file_sha256 IS 'Digest of each file by its name.';
COMMENT ON COLUMN file_revision.reason IS 'Why it was written again.';
COMMENT ON COLUMN file_revision.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN file_revision.salt IS '16 random bytes that enter the digest of the row.';

-- The guard rails of 003, for these tables. An erasure takes the one against deletion away and puts it back within its
-- own transaction.

CREATE TRIGGER withdrawal_refuses_update AFTER UPDATE ON withdrawal FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of withdrawal cannot be changed');
CREATE TRIGGER withdrawal_refuses_delete AFTER DELETE ON withdrawal FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of withdrawal cannot be deleted');

CREATE TRIGGER withdrawn_example_refuses_update AFTER UPDATE ON withdrawn_example FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of withdrawn_example cannot be changed');
CREATE TRIGGER withdrawn_example_refuses_delete AFTER DELETE ON withdrawn_example FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of withdrawn_example cannot be deleted');

CREATE TRIGGER audit_signature_refuses_update AFTER UPDATE ON audit_signature FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of audit_signature cannot be changed');
CREATE TRIGGER audit_signature_refuses_delete AFTER DELETE ON audit_signature FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of audit_signature cannot be deleted');

CREATE TRIGGER personal_attribute_refuses_update AFTER UPDATE ON personal_attribute FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of personal_attribute cannot be changed');
CREATE TRIGGER personal_attribute_refuses_delete AFTER DELETE ON personal_attribute FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of personal_attribute cannot be deleted');

CREATE TRIGGER erasure_refuses_update AFTER UPDATE ON erasure FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of erasure cannot be changed');
CREATE TRIGGER erasure_refuses_delete AFTER DELETE ON erasure FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of erasure cannot be deleted');

CREATE TRIGGER erased_row_refuses_update AFTER UPDATE ON erased_row FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of erased_row cannot be changed');
CREATE TRIGGER erased_row_refuses_delete AFTER DELETE ON erased_row FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of erased_row cannot be deleted');

CREATE TRIGGER file_revision_refuses_update AFTER UPDATE ON file_revision FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of file_revision cannot be changed');
CREATE TRIGGER file_revision_refuses_delete AFTER DELETE ON file_revision FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of file_revision cannot be deleted');
