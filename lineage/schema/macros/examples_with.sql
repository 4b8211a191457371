CREATE OR REPLACE MACRO examples_with(name, wanted) AS TABLE
SELECT dataset_version_id, example_id, event_sequence
FROM standing_example
WHERE CASE
    WHEN name IS NULL THEN list_contains(wanted, example_id) OR list_contains(wanted, attributes['source'])
    WHEN name = 'example_id' THEN list_contains(wanted, example_id)
    ELSE list_contains(wanted, attributes[name])
END
UNION ALL
SELECT personal_attribute.dataset_version_id, personal_attribute.example_id, personal_attribute.event_sequence
FROM personal_attribute
WHERE personal_attribute.name = coalesce(name, 'source') AND list_contains(wanted, personal_attribute.value)
    AND NOT (name IS NULL AND list_contains(wanted, personal_attribute.example_id));
COMMENT ON MACRO TABLE examples_with IS
    'The examples whose attribute, personal or not, has one of the wanted values; name example_id: with one of these ids; NULL: ids or values of source.';
