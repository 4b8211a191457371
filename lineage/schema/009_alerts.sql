-- Alerts: which outlets were told about the findings of an audit.

CREATE TABLE alert (
    audit_id         VARCHAR NOT NULL,
    outlet           VARCHAR NOT NULL,
    state            VARCHAR NOT NULL,
    idempotency_key  VARCHAR NOT NULL,
    event_sequence   BIGINT NOT NULL,
    salt             BLOB NOT NULL,
    PRIMARY KEY (audit_id, outlet, state)
);
COMMENT ON TABLE alert IS 'Alerts about audits: a row when one became due, another when its outlet had taken it.';
COMMENT ON COLUMN alert.audit_id IS 'The audit whose findings it is about.';
COMMENT ON COLUMN alert.outlet IS 'Where it goes: prefect, or webhook with host and a digest of the address.';
COMMENT ON COLUMN alert.state IS 'due or delivered.';
COMMENT ON COLUMN alert.idempotency_key IS 'Digest of audit and outlet: the same at every attempt, so that a receiver can tell a repeat.';
COMMENT ON COLUMN alert.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN alert.salt IS '16 random bytes that enter the digest of the row.';

CREATE TRIGGER alert_refuses_update AFTER UPDATE ON alert FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of alert cannot be changed');
CREATE TRIGGER alert_refuses_delete AFTER DELETE ON alert FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of alert cannot be deleted');
