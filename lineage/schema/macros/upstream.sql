-- upstream: what a node depends on. Membership (contains) is followed only from the start node, else every
-- output would list the whole training set; members := true follows it everywhere.
CREATE OR REPLACE MACRO upstream(start_id, start_kind := NULL, max_depth := 1000000, members := false, as_of := NULL) AS TABLE
FROM upstream_until(
    start_id, start_kind := start_kind, max_depth := max_depth, members := members, bound := last_event(as_of)
);
COMMENT ON MACRO TABLE upstream IS
    'What a node depends on, with depth, relation, parent and label. members: with all examples of every dataset version. as_of: as it was at that audit.';
