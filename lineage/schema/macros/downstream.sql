-- downstream: what depends on a node. Every edge is followed, backwards.
CREATE OR REPLACE MACRO downstream(start_id, start_kind := NULL, max_depth := 1000000, as_of := NULL) AS TABLE
FROM downstream_until(start_id, start_kind := start_kind, max_depth := max_depth, bound := last_event(as_of));
COMMENT ON MACRO TABLE downstream IS
    'What depends on a node, with depth, relation, parent and label. as_of: as it was at that audit.';
