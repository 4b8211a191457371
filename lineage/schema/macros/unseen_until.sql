-- What the answer of blast_radius leaves open, in numbers. Zero rows of a kind are left out.
CREATE OR REPLACE MACRO unseen_until(name, wanted, bound) AS TABLE
WITH chosen AS MATERIALIZED (
    SELECT dataset_version_id, example_id FROM examples_with(name, wanted) WHERE event_sequence <= bound
), per_dataset AS MATERIALIZED (
    SELECT dataset_version_id, count(*) AS examples FROM chosen GROUP BY dataset_version_id
), trained AS MATERIALIZED (
    SELECT model_version_id FROM model_version JOIN per_dataset USING (dataset_version_id)
    WHERE model_version.event_sequence <= bound
), concerned AS MATERIALIZED (
    SELECT audit.audit_id, per_dataset.dataset_version_id, per_dataset.examples
    FROM audit JOIN audit_dataset USING (audit_id) JOIN per_dataset USING (dataset_version_id)
    WHERE audit.event_sequence <= bound
), left_out AS (
    SELECT gradient_index.index_id, unnest(map_keys(gradient_index.quarantined)) AS example_id, dataset_version_id
    FROM gradient_index JOIN per_dataset USING (dataset_version_id)
    WHERE gradient_index.event_sequence <= bound
), counted AS (
    SELECT 'outputs outside any audit' AS what, count(*) AS number,
        'Nothing was measured of them, though their model was trained on these examples.' AS meaning
    FROM output JOIN trained USING (model_version_id)
    WHERE output.event_sequence <= bound AND NOT EXISTS (
        SELECT 1 FROM standing_audit_output AS examined WHERE examined.output_id = output.output_id AND examined.event_sequence <= bound)
    UNION ALL
    SELECT 'model versions without an audit', count(*), 'They were trained on these examples, and none of their outputs was audited.'
    FROM trained
    WHERE NOT EXISTS (
        SELECT 1 FROM audit WHERE audit.model_version_id = trained.model_version_id AND audit.event_sequence <= bound)
    UNION ALL
    SELECT 'scores that were not kept', sum(concerned.examples) - (
            SELECT count(*) FROM attribution JOIN concerned USING (audit_id) JOIN chosen USING (dataset_version_id, example_id)
            WHERE attribution.event_sequence <= bound),
        'Each audit scored every example and kept the strongest of each output; the others count in shares only.'
    FROM audit_output JOIN concerned USING (audit_id)
    UNION ALL
    SELECT 'audits without shares of this attribute', count(*),
        'They did not sum by it; gradtrail.connect().influence_by() does so from the stored gradients.'
    FROM concerned
    WHERE coalesce(name, 'source') <> 'example_id' AND NOT EXISTS (
        SELECT 1 FROM share WHERE share.audit_id = concerned.audit_id AND share.attribute = coalesce(name, 'source'))
    UNION ALL
    SELECT 'examples left out of an index', count(*), 'They were quarantined while gradients were taken, so they have no score.'
    FROM left_out JOIN chosen USING (dataset_version_id, example_id)
)
SELECT what, number::BIGINT AS number, meaning FROM counted WHERE number > 0;
COMMENT ON MACRO TABLE unseen_until IS 'As unseen_by_blast_radius, for several values of an attribute, up to the event with the number bound.';
