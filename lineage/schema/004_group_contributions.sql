-- Which parameter groups carried an attribution: the split of the kept scores by group.

CREATE TABLE group_contribution (
    audit_id        VARCHAR NOT NULL,
    position        BIGINT NOT NULL,
    output_id       VARCHAR,
    side            VARCHAR NOT NULL,
    group_name      VARCHAR NOT NULL,
    share           DOUBLE NOT NULL,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL,
    PRIMARY KEY (audit_id, position)
);
COMMENT ON TABLE group_contribution IS 'How much of the kept attributions came from each parameter group; audits from before version 4 have none.';
COMMENT ON COLUMN group_contribution.audit_id IS 'The audit.';
COMMENT ON COLUMN group_contribution.position IS 'Place in the audit, from 0; within one output and side, groups are in the order of the model.';
COMMENT ON COLUMN group_contribution.output_id IS 'The output; NULL for the mean over the outputs of the audit.';
COMMENT ON COLUMN group_contribution.side IS 'proponent or opponent.';
COMMENT ON COLUMN group_contribution.group_name IS 'Name of the parameter group, as in the index.';
COMMENT ON COLUMN group_contribution.share IS 'Part of the sum of the kept scores; all groups add up to 1, and one that pulls the other way is negative.';
COMMENT ON COLUMN group_contribution.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN group_contribution.salt IS '16 random bytes that enter the digest of the row.';

CREATE TRIGGER group_contribution_refuses_update AFTER UPDATE ON group_contribution FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of group_contribution cannot be changed');
CREATE TRIGGER group_contribution_refuses_delete AFTER DELETE ON group_contribution FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of group_contribution cannot be deleted');

CREATE VIEW attribution_by_group AS
SELECT
    group_contribution.audit_id,
    audit.model_version_id,
    audit.method,
    group_contribution.output_id,
    group_contribution.side,
    row_number() OVER (
        PARTITION BY group_contribution.audit_id, group_contribution.output_id, group_contribution.side
        ORDER BY group_contribution.position
    ) - 1 AS depth,
    group_contribution.group_name,
    group_contribution.share,
    coalesce(weighting.group_weights[group_contribution.group_name], 1) AS weight
FROM group_contribution
JOIN audit ON audit.audit_id = group_contribution.audit_id
JOIN weighting ON weighting.weighting_id = audit.weighting_id;
COMMENT ON VIEW attribution_by_group IS 'Parts of the kept attributions by parameter group, with its weight; output_id is NULL for the mean over an audit.';
