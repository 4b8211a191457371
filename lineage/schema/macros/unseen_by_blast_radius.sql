CREATE OR REPLACE MACRO unseen_by_blast_radius(start_id, attribute := NULL, as_of := NULL) AS TABLE
FROM unseen_until(attribute, [start_id], last_event(as_of));
COMMENT ON MACRO TABLE unseen_by_blast_radius IS
    'What blast_radius with the same arguments cannot see: how many outputs, scores and examples, and why.';
