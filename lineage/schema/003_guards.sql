-- A guard rail, not security: changing or deleting a row fails, so that nobody does it by accident.
-- What someone does on purpose is for the hash chain to show.
-- Each trigger inserts the result of error(), which raises first, so refusal stays empty.

CREATE TABLE refusal (
    reason  VARCHAR NOT NULL
);
COMMENT ON TABLE refusal IS 'Always empty: a trigger needs a table to insert into.';
COMMENT ON COLUMN refusal.reason IS 'Never stored.';

CREATE TRIGGER schema_version_refuses_update AFTER UPDATE ON schema_version FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of schema_version cannot be changed');
CREATE TRIGGER schema_version_refuses_delete AFTER DELETE ON schema_version FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of schema_version cannot be deleted');

CREATE TRIGGER dataset_version_refuses_update AFTER UPDATE ON dataset_version FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of dataset_version cannot be changed');
CREATE TRIGGER dataset_version_refuses_delete AFTER DELETE ON dataset_version FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of dataset_version cannot be deleted');

CREATE TRIGGER example_refuses_update AFTER UPDATE ON example FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of example cannot be changed');
CREATE TRIGGER example_refuses_delete AFTER DELETE ON example FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of example cannot be deleted');

CREATE TRIGGER training_run_refuses_update AFTER UPDATE ON training_run FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of training_run cannot be changed');
CREATE TRIGGER training_run_refuses_delete AFTER DELETE ON training_run FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of training_run cannot be deleted');

CREATE TRIGGER checkpoint_refuses_update AFTER UPDATE ON checkpoint FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of checkpoint cannot be changed');
CREATE TRIGGER checkpoint_refuses_delete AFTER DELETE ON checkpoint FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of checkpoint cannot be deleted');

CREATE TRIGGER model_version_refuses_update AFTER UPDATE ON model_version FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of model_version cannot be changed');
CREATE TRIGGER model_version_refuses_delete AFTER DELETE ON model_version FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of model_version cannot be deleted');

CREATE TRIGGER model_version_checkpoint_refuses_update AFTER UPDATE ON model_version_checkpoint FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of model_version_checkpoint cannot be changed');
CREATE TRIGGER model_version_checkpoint_refuses_delete AFTER DELETE ON model_version_checkpoint FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of model_version_checkpoint cannot be deleted');

CREATE TRIGGER gradient_index_refuses_update AFTER UPDATE ON gradient_index FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of gradient_index cannot be changed');
CREATE TRIGGER gradient_index_refuses_delete AFTER DELETE ON gradient_index FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of gradient_index cannot be deleted');

CREATE TRIGGER weighting_refuses_update AFTER UPDATE ON weighting FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of weighting cannot be changed');
CREATE TRIGGER weighting_refuses_delete AFTER DELETE ON weighting FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of weighting cannot be deleted');

CREATE TRIGGER fidelity_refuses_update AFTER UPDATE ON fidelity FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of fidelity cannot be changed');
CREATE TRIGGER fidelity_refuses_delete AFTER DELETE ON fidelity FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of fidelity cannot be deleted');

CREATE TRIGGER output_refuses_update AFTER UPDATE ON output FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of output cannot be changed');
CREATE TRIGGER output_refuses_delete AFTER DELETE ON output FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of output cannot be deleted');

CREATE TRIGGER audit_refuses_update AFTER UPDATE ON audit FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of audit cannot be changed');
CREATE TRIGGER audit_refuses_delete AFTER DELETE ON audit FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of audit cannot be deleted');

CREATE TRIGGER audit_output_refuses_update AFTER UPDATE ON audit_output FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of audit_output cannot be changed');
CREATE TRIGGER audit_output_refuses_delete AFTER DELETE ON audit_output FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of audit_output cannot be deleted');

CREATE TRIGGER audit_index_refuses_update AFTER UPDATE ON audit_index FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of audit_index cannot be changed');
CREATE TRIGGER audit_index_refuses_delete AFTER DELETE ON audit_index FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of audit_index cannot be deleted');

CREATE TRIGGER attribution_refuses_update AFTER UPDATE ON attribution FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of attribution cannot be changed');
CREATE TRIGGER attribution_refuses_delete AFTER DELETE ON attribution FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of attribution cannot be deleted');

CREATE TRIGGER share_refuses_update AFTER UPDATE ON share FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of share cannot be changed');
CREATE TRIGGER share_refuses_delete AFTER DELETE ON share FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of share cannot be deleted');

CREATE TRIGGER example_influence_refuses_update AFTER UPDATE ON example_influence FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of example_influence cannot be changed');
CREATE TRIGGER example_influence_refuses_delete AFTER DELETE ON example_influence FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of example_influence cannot be deleted');

CREATE TRIGGER finding_refuses_update AFTER UPDATE ON finding FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of finding cannot be changed');
CREATE TRIGGER finding_refuses_delete AFTER DELETE ON finding FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of finding cannot be deleted');

CREATE TRIGGER report_refuses_update AFTER UPDATE ON report FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of report cannot be changed');
CREATE TRIGGER report_refuses_delete AFTER DELETE ON report FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of report cannot be deleted');

CREATE TRIGGER quarantine_refuses_update AFTER UPDATE ON quarantine FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of quarantine cannot be changed');
CREATE TRIGGER quarantine_refuses_delete AFTER DELETE ON quarantine FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of quarantine cannot be deleted');

CREATE TRIGGER event_refuses_update AFTER UPDATE ON event FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of event cannot be changed');
CREATE TRIGGER event_refuses_delete AFTER DELETE ON event FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of event cannot be deleted');

CREATE TRIGGER row_commitment_refuses_update AFTER UPDATE ON row_commitment FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of row_commitment cannot be changed');
CREATE TRIGGER row_commitment_refuses_delete AFTER DELETE ON row_commitment FOR EACH STATEMENT
    INSERT INTO refusal SELECT error('the ledger is append-only: a row of row_commitment cannot be deleted');
