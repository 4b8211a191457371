-- Every row names the event that recorded it, and events are numbered. A macro with the argument as_of leaves out every
-- row of a later event, so that it shows the graph as it was when that audit was recorded.
CREATE OR REPLACE MACRO last_event(as_of) AS CASE
    WHEN as_of IS NULL THEN 9223372036854775807
    ELSE (SELECT event_sequence FROM audit WHERE audit_id = audit_named(as_of))
END;
COMMENT ON MACRO last_event IS 'The event that recorded an audit; for NULL, a number above that of every event.';
