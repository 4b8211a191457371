CREATE OR REPLACE MACRO audit_named(audit_id_or_prefix) AS coalesce(
    (SELECT CASE WHEN count(*) < 2 THEN min(audit_id) ELSE error('more than one audit begins with ' || audit_id_or_prefix) END
        FROM audit WHERE starts_with(audit_id, audit_id_or_prefix)),
    error('there is no audit ' || audit_id_or_prefix));
COMMENT ON MACRO audit_named IS 'The full id of the audit that a text begins. An error when there is none or more than one.';
