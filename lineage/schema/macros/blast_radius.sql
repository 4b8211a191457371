CREATE OR REPLACE MACRO blast_radius(start_id, attribute := NULL, as_of := NULL) AS TABLE
FROM blast_radius_until(attribute, [start_id], last_event(as_of));
COMMENT ON MACRO TABLE blast_radius IS
    'What an example or a source touched: dataset versions, model versions, audits, outputs, reports, each with its evidence; share is the part of the influence. attribute: the name of another attribute, or example_id. What it cannot see: unseen_by_blast_radius.';
