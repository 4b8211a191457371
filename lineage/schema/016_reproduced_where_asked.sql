-- Whether an output is reproduced is no question of every model: embeddings, triplets, sampled pictures.
--
-- Views and macros: ef4cbf9351d2fddfade07ffa7c060117efd7eb31da69a6924ecb5f04f63ed048

ALTER TABLE audit_output ALTER COLUMN reproduced DROP NOT NULL;
COMMENT ON COLUMN audit_output.reproduced IS 'Whether the pinned checkpoint emits the recorded output again. NULL where the adapter says that this is no question; never before version 16.';
