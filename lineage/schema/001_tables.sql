-- The nouns of gradtrail, one table each, and the history that protects them.
--
-- Every table but event and row_commitment carries two more columns:
--   event_sequence  the event that recorded the row;
--   salt            16 random bytes that enter the row's digest, so that a digest tells nothing once row and salt are gone.
-- Rows are only ever added. There are keys and no foreign keys: the one writer checks what a row refers to.

CREATE TABLE schema_version (
    version         BIGINT PRIMARY KEY,
    file            VARCHAR NOT NULL,
    file_sha256     VARCHAR NOT NULL,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL
);
COMMENT ON TABLE schema_version IS 'The numbered schema files this ledger was built from.';
COMMENT ON COLUMN schema_version.version IS 'Number of the schema file; the largest is the version of the ledger.';
COMMENT ON COLUMN schema_version.file IS 'Name of the schema file.';
COMMENT ON COLUMN schema_version.file_sha256 IS 'Digest of the schema file as it was applied.';
COMMENT ON COLUMN schema_version.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN schema_version.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE dataset_version (
    dataset_version_id  VARCHAR PRIMARY KEY,
    name                VARCHAR NOT NULL,
    example_count       BIGINT NOT NULL,
    manifest_uri        VARCHAR NOT NULL,
    event_sequence      BIGINT NOT NULL,
    salt                BLOB NOT NULL
);
COMMENT ON TABLE dataset_version IS 'An ordered manifest of training examples.';
COMMENT ON COLUMN dataset_version.dataset_version_id IS 'sha256 of the manifest.';
COMMENT ON COLUMN dataset_version.name IS 'Name of the data set when it was first recorded.';
COMMENT ON COLUMN dataset_version.example_count IS 'Number of examples.';
COMMENT ON COLUMN dataset_version.manifest_uri IS 'Where the manifest was first read.';
COMMENT ON COLUMN dataset_version.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN dataset_version.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE example (
    dataset_version_id  VARCHAR NOT NULL,
    example_id          VARCHAR NOT NULL,
    position            BIGINT NOT NULL,
    content_sha256      VARCHAR NOT NULL,
    attributes          MAP(VARCHAR, VARCHAR) NOT NULL,
    event_sequence      BIGINT NOT NULL,
    salt                BLOB NOT NULL,
    PRIMARY KEY (dataset_version_id, example_id)
);
COMMENT ON TABLE example IS 'The examples of each dataset version; the one table that holds attributes, which may be personal.';
COMMENT ON COLUMN example.dataset_version_id IS 'The dataset version that contains the example.';
COMMENT ON COLUMN example.example_id IS 'The stable id the user gave.';
COMMENT ON COLUMN example.position IS 'Place in the manifest, from 0.';
COMMENT ON COLUMN example.content_sha256 IS 'Digest of inputs and target.';
COMMENT ON COLUMN example.attributes IS 'Text by name: source, licence, label, author and more.';
COMMENT ON COLUMN example.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN example.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE training_run (
    run_id          VARCHAR PRIMARY KEY,
    experiment_id   VARCHAR NOT NULL,
    name            VARCHAR NOT NULL,
    started_at      TIMESTAMPTZ,
    parameters      MAP(VARCHAR, VARCHAR) NOT NULL,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL
);
COMMENT ON TABLE training_run IS 'The MLflow runs that trained the models.';
COMMENT ON COLUMN training_run.run_id IS 'MLflow run id.';
COMMENT ON COLUMN training_run.experiment_id IS 'MLflow experiment id.';
COMMENT ON COLUMN training_run.name IS 'Name of the run when it was first recorded.';
COMMENT ON COLUMN training_run.started_at IS 'Start of the training, UTC.';
COMMENT ON COLUMN training_run.parameters IS 'Parameters of the run when it was first recorded.';
COMMENT ON COLUMN training_run.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN training_run.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE checkpoint (
    checkpoint_id   VARCHAR PRIMARY KEY,
    format          VARCHAR NOT NULL,
    byte_size       BIGINT NOT NULL,
    weights_sha256  VARCHAR NOT NULL,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL
);
COMMENT ON TABLE checkpoint IS 'Weights: what the bytes of the file determine. Step and place are in model_version_checkpoint.';
COMMENT ON COLUMN checkpoint.checkpoint_id IS 'sha256 of the registered file.';
COMMENT ON COLUMN checkpoint.format IS 'Format of the registered file, for example safetensors.';
COMMENT ON COLUMN checkpoint.byte_size IS 'Size of the registered file in bytes.';
COMMENT ON COLUMN checkpoint.weights_sha256 IS 'sha256 of the safetensors file that is read.';
COMMENT ON COLUMN checkpoint.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN checkpoint.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE model_version (
    model_version_id    VARCHAR PRIMARY KEY,
    name                VARCHAR NOT NULL,
    version             BIGINT NOT NULL,
    run_id              VARCHAR NOT NULL,
    dataset_version_id  VARCHAR NOT NULL,
    adapter             VARCHAR NOT NULL,
    adapter_sha256      VARCHAR NOT NULL,
    event_sequence      BIGINT NOT NULL,
    salt                BLOB NOT NULL
);
COMMENT ON TABLE model_version IS 'Registered MLflow model versions.';
COMMENT ON COLUMN model_version.model_version_id IS 'Name and number, for example digits/3.';
COMMENT ON COLUMN model_version.name IS 'Name of the registered model.';
COMMENT ON COLUMN model_version.version IS 'Number of the version.';
COMMENT ON COLUMN model_version.run_id IS 'The training run.';
COMMENT ON COLUMN model_version.dataset_version_id IS 'The dataset version it was trained on.';
COMMENT ON COLUMN model_version.adapter IS 'Adapter, as module:Class.';
COMMENT ON COLUMN model_version.adapter_sha256 IS 'Digest of the adapter''s source, pinned.';
COMMENT ON COLUMN model_version.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN model_version.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE model_version_checkpoint (
    model_version_id  VARCHAR NOT NULL,
    position          BIGINT NOT NULL,
    checkpoint_id     VARCHAR NOT NULL,
    step              BIGINT NOT NULL,
    learning_rate     DOUBLE,
    source_uri        VARCHAR NOT NULL,
    weights_uri       VARCHAR NOT NULL,
    event_sequence    BIGINT NOT NULL,
    salt              BLOB NOT NULL,
    PRIMARY KEY (model_version_id, position)
);
COMMENT ON TABLE model_version_checkpoint IS 'The checkpoints of each model version, in order of steps; the last one serves.';
COMMENT ON COLUMN model_version_checkpoint.model_version_id IS 'The model version.';
COMMENT ON COLUMN model_version_checkpoint.position IS 'Place in the order of steps, from 0.';
COMMENT ON COLUMN model_version_checkpoint.checkpoint_id IS 'The checkpoint.';
COMMENT ON COLUMN model_version_checkpoint.step IS 'Training step at which it was written.';
COMMENT ON COLUMN model_version_checkpoint.learning_rate IS 'Learning rate at that step; NULL where nobody recorded it.';
COMMENT ON COLUMN model_version_checkpoint.source_uri IS 'The registered file.';
COMMENT ON COLUMN model_version_checkpoint.weights_uri IS 'The safetensors file that is read: the registered file or its safe copy.';
COMMENT ON COLUMN model_version_checkpoint.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN model_version_checkpoint.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE gradient_index (
    index_id             VARCHAR PRIMARY KEY,
    checkpoint_id        VARCHAR NOT NULL,
    dataset_version_id   VARCHAR NOT NULL,
    feature_config       JSON NOT NULL,
    covered_parameters   BIGINT NOT NULL,
    total_parameters     BIGINT NOT NULL,
    uncovered            VARCHAR[] NOT NULL,
    indexed_examples     BIGINT NOT NULL,
    total_examples       BIGINT NOT NULL,
    quarantined          MAP(VARCHAR, VARCHAR) NOT NULL,
    table_uri            VARCHAR NOT NULL,
    table_version        BIGINT NOT NULL,
    rows_sha256          VARCHAR NOT NULL,
    event_sequence       BIGINT NOT NULL,
    salt                 BLOB NOT NULL
);
COMMENT ON TABLE gradient_index IS 'Gradient tables: one per checkpoint, dataset version and feature configuration.';
COMMENT ON COLUMN gradient_index.index_id IS 'Digest of checkpoint, dataset version and feature configuration.';
COMMENT ON COLUMN gradient_index.checkpoint_id IS 'The checkpoint the gradients were taken at.';
COMMENT ON COLUMN gradient_index.dataset_version_id IS 'The dataset version they were taken over.';
COMMENT ON COLUMN gradient_index.feature_config IS 'How gradients became features: measurement, groups, projection, seed, number type.';
COMMENT ON COLUMN gradient_index.covered_parameters IS 'Parameters the index speaks for.';
COMMENT ON COLUMN gradient_index.total_parameters IS 'Parameters of the model.';
COMMENT ON COLUMN gradient_index.uncovered IS 'Names of the parameters left out.';
COMMENT ON COLUMN gradient_index.indexed_examples IS 'Examples with a row in the gradient table.';
COMMENT ON COLUMN gradient_index.total_examples IS 'Examples of the dataset version.';
COMMENT ON COLUMN gradient_index.quarantined IS 'Examples left out, with the cause.';
COMMENT ON COLUMN gradient_index.table_uri IS 'The LanceDB table.';
COMMENT ON COLUMN gradient_index.table_version IS 'Its pinned version.';
COMMENT ON COLUMN gradient_index.rows_sha256 IS 'Digest of all its rows, in no order, as sealed.';
COMMENT ON COLUMN gradient_index.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN gradient_index.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE weighting (
    weighting_id    VARCHAR PRIMARY KEY,
    objective       VARCHAR NOT NULL,
    group_weights   MAP(VARCHAR, DOUBLE) NOT NULL,
    evidence        JSON NOT NULL,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL
);
COMMENT ON TABLE weighting IS 'Importance of each parameter group.';
COMMENT ON COLUMN weighting.weighting_id IS 'Digest of objective and weights.';
COMMENT ON COLUMN weighting.objective IS 'What the weights were fitted for; uniform when they were not fitted.';
COMMENT ON COLUMN weighting.group_weights IS 'Weight by group; empty means every group counts 1.';
COMMENT ON COLUMN weighting.evidence IS 'What the fit measured, as first recorded.';
COMMENT ON COLUMN weighting.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN weighting.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE fidelity (
    fidelity_id     VARCHAR PRIMARY KEY,
    checkpoint_id   VARCHAR NOT NULL,
    method          VARCHAR NOT NULL,
    weighting_id    VARCHAR NOT NULL,
    metric          VARCHAR NOT NULL,
    value           DOUBLE NOT NULL,
    standard_error  DOUBLE NOT NULL,
    ceiling         DOUBLE NOT NULL,
    queries         BIGINT NOT NULL,
    parameters      JSON NOT NULL,
    evidence        JSON NOT NULL,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL
);
COMMENT ON TABLE fidelity IS 'What a method measured against further training on one checkpoint; every measurement is kept.';
COMMENT ON COLUMN fidelity.fidelity_id IS 'Digest of the measurement.';
COMMENT ON COLUMN fidelity.checkpoint_id IS 'The checkpoint measured.';
COMMENT ON COLUMN fidelity.method IS 'The attribution method.';
COMMENT ON COLUMN fidelity.weighting_id IS 'The weighting it used.';
COMMENT ON COLUMN fidelity.metric IS 'The yardstick, for example fidelity_subset.';
COMMENT ON COLUMN fidelity.value IS 'The figure.';
COMMENT ON COLUMN fidelity.standard_error IS 'Its standard error.';
COMMENT ON COLUMN fidelity.ceiling IS 'The best figure the noise of the yardstick allows.';
COMMENT ON COLUMN fidelity.queries IS 'Number of queries behind the figure.';
COMMENT ON COLUMN fidelity.parameters IS 'Parameters of the method, for example curvature and damping.';
COMMENT ON COLUMN fidelity.evidence IS 'How it was measured: indexes, steps of further training, optimiser, left-out sets, seeds, queries; whether method auto takes it.';
COMMENT ON COLUMN fidelity.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN fidelity.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE output (
    output_id         VARCHAR PRIMARY KEY,
    source            VARCHAR NOT NULL,
    record_id         VARCHAR NOT NULL,
    produced_at       TIMESTAMPTZ NOT NULL,
    model_version_id  VARCHAR NOT NULL,
    payload_sha256    VARCHAR NOT NULL,
    target            VARCHAR NOT NULL,
    event_sequence    BIGINT NOT NULL,
    salt              BLOB NOT NULL
);
COMMENT ON TABLE output IS 'Things the models produced.';
COMMENT ON COLUMN output.output_id IS 'Source and record id.';
COMMENT ON COLUMN output.source IS 'Where the record came from, for example inbox.';
COMMENT ON COLUMN output.record_id IS 'Id of the record at its source.';
COMMENT ON COLUMN output.produced_at IS 'When the model produced it, UTC.';
COMMENT ON COLUMN output.model_version_id IS 'The model version that produced it.';
COMMENT ON COLUMN output.payload_sha256 IS 'Digest of the payload, which lives in the payload store.';
COMMENT ON COLUMN output.target IS 'What is asked about it: emitted (why did the model say this) or label (why was it wrong).';
COMMENT ON COLUMN output.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN output.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE audit (
    audit_id          VARCHAR PRIMARY KEY,
    model_version_id  VARCHAR NOT NULL,
    method            VARCHAR NOT NULL,
    parameters        JSON NOT NULL,
    weighting_id      VARCHAR NOT NULL,
    policy_sha256     VARCHAR NOT NULL,
    method_notes      JSON NOT NULL,
    event_sequence    BIGINT NOT NULL,
    salt              BLOB NOT NULL
);
COMMENT ON TABLE audit IS 'Audits: outputs, indexes, method, weighting and policy, pinned. When it was recorded is in event.';
COMMENT ON COLUMN audit.audit_id IS 'Digest of everything that determines the answer.';
COMMENT ON COLUMN audit.model_version_id IS 'The model version audited.';
COMMENT ON COLUMN audit.method IS 'The attribution method.';
COMMENT ON COLUMN audit.parameters IS 'Its parameters.';
COMMENT ON COLUMN audit.weighting_id IS 'The weighting it used.';
COMMENT ON COLUMN audit.policy_sha256 IS 'Digest of the policy file.';
COMMENT ON COLUMN audit.method_notes IS 'What a reader must know about the scores: sign, unit, curvature, what was left out.';
COMMENT ON COLUMN audit.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN audit.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE audit_output (
    audit_id        VARCHAR NOT NULL,
    output_id       VARCHAR NOT NULL,
    position        BIGINT NOT NULL,
    target          VARCHAR NOT NULL,
    prediction      VARCHAR NOT NULL,
    loss            DOUBLE NOT NULL,
    reproduced      BOOLEAN NOT NULL,
    proponent_mass  DOUBLE NOT NULL,
    opponent_mass   DOUBLE NOT NULL,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL,
    PRIMARY KEY (audit_id, output_id)
);
COMMENT ON TABLE audit_output IS 'What an audit found about each of its outputs as a whole.';
COMMENT ON COLUMN audit_output.audit_id IS 'The audit.';
COMMENT ON COLUMN audit_output.output_id IS 'The output.';
COMMENT ON COLUMN audit_output.position IS 'Place in the audit, from 0.';
COMMENT ON COLUMN audit_output.target IS 'The target this audit measured: emitted or label.';
COMMENT ON COLUMN audit_output.prediction IS 'What the pinned checkpoint emits, as text.';
COMMENT ON COLUMN audit_output.loss IS 'Loss of the measured target.';
COMMENT ON COLUMN audit_output.reproduced IS 'Whether the pinned checkpoint emits the recorded output again.';
COMMENT ON COLUMN audit_output.proponent_mass IS 'Sum of the positive scores over all examples.';
COMMENT ON COLUMN audit_output.opponent_mass IS 'Sum of the negative scores over all examples.';
COMMENT ON COLUMN audit_output.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN audit_output.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE audit_index (
    audit_id        VARCHAR NOT NULL,
    position        BIGINT NOT NULL,
    index_id        VARCHAR NOT NULL,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL,
    PRIMARY KEY (audit_id, position)
);
COMMENT ON TABLE audit_index IS 'The gradient indexes each audit scored against; all of one audit share a dataset version.';
COMMENT ON COLUMN audit_index.audit_id IS 'The audit.';
COMMENT ON COLUMN audit_index.position IS 'Place in the audit, from 0.';
COMMENT ON COLUMN audit_index.index_id IS 'The index.';
COMMENT ON COLUMN audit_index.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN audit_index.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE attribution (
    audit_id        VARCHAR NOT NULL,
    output_id       VARCHAR NOT NULL,
    example_id      VARCHAR NOT NULL,
    side            VARCHAR NOT NULL,
    rank            BIGINT NOT NULL,
    score           DOUBLE NOT NULL,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL,
    PRIMARY KEY (audit_id, output_id, example_id)
);
COMMENT ON TABLE attribution IS 'The strongest examples of each output, on both sides.';
COMMENT ON COLUMN attribution.audit_id IS 'The audit.';
COMMENT ON COLUMN attribution.output_id IS 'The output.';
COMMENT ON COLUMN attribution.example_id IS 'The training example.';
COMMENT ON COLUMN attribution.side IS 'proponent or opponent.';
COMMENT ON COLUMN attribution.rank IS 'Place on its side, the strongest first.';
COMMENT ON COLUMN attribution.score IS 'Positive: training on the example lowers the loss of the output. Negative: it raises it.';
COMMENT ON COLUMN attribution.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN attribution.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE share (
    audit_id        VARCHAR NOT NULL,
    position        BIGINT NOT NULL,
    output_id       VARCHAR,
    side            VARCHAR NOT NULL,
    attribute       VARCHAR NOT NULL,
    value           VARCHAR NOT NULL,
    share           DOUBLE NOT NULL,
    training_share  DOUBLE NOT NULL,
    interval_low    DOUBLE,
    interval_high   DOUBLE,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL,
    PRIMARY KEY (audit_id, position)
);
COMMENT ON TABLE share IS 'How much of the influence came from each attribute value, over all examples.';
COMMENT ON COLUMN share.audit_id IS 'The audit.';
COMMENT ON COLUMN share.position IS 'Place in the audit, from 0.';
COMMENT ON COLUMN share.output_id IS 'The output; NULL for the mean over the outputs of the audit.';
COMMENT ON COLUMN share.side IS 'proponent or opponent.';
COMMENT ON COLUMN share.attribute IS 'Name of the attribute, for example source.';
COMMENT ON COLUMN share.value IS 'Its value.';
COMMENT ON COLUMN share.share IS 'Share of the influence, 0 to 1.';
COMMENT ON COLUMN share.training_share IS 'Share of the training set, 0 to 1.';
COMMENT ON COLUMN share.interval_low IS 'Lower end of the permutation interval, where it was measured.';
COMMENT ON COLUMN share.interval_high IS 'Upper end of the permutation interval, where it was measured.';
COMMENT ON COLUMN share.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN share.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE example_influence (
    audit_id        VARCHAR NOT NULL,
    side            VARCHAR NOT NULL,
    example_id      VARCHAR NOT NULL,
    rank            BIGINT NOT NULL,
    share           DOUBLE NOT NULL,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL,
    PRIMARY KEY (audit_id, side, example_id)
);
COMMENT ON TABLE example_influence IS 'The examples that matter most over all outputs of an audit.';
COMMENT ON COLUMN example_influence.audit_id IS 'The audit.';
COMMENT ON COLUMN example_influence.side IS 'proponent or opponent.';
COMMENT ON COLUMN example_influence.example_id IS 'The training example.';
COMMENT ON COLUMN example_influence.rank IS 'Place on its side, the strongest first.';
COMMENT ON COLUMN example_influence.share IS 'Mean share of the influence over the outputs, 0 to 1.';
COMMENT ON COLUMN example_influence.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN example_influence.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE finding (
    audit_id        VARCHAR NOT NULL,
    position        BIGINT NOT NULL,
    rule            VARCHAR NOT NULL,
    severity        VARCHAR NOT NULL,
    message         VARCHAR NOT NULL,
    output_id       VARCHAR,
    evidence        JSON NOT NULL,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL,
    PRIMARY KEY (audit_id, position)
);
COMMENT ON TABLE finding IS 'Policies that fired.';
COMMENT ON COLUMN finding.audit_id IS 'The audit.';
COMMENT ON COLUMN finding.position IS 'Place in the audit, from 0.';
COMMENT ON COLUMN finding.rule IS 'Name of the rule.';
COMMENT ON COLUMN finding.severity IS 'high, medium, low or info.';
COMMENT ON COLUMN finding.message IS 'What was found, in a sentence.';
COMMENT ON COLUMN finding.output_id IS 'The output concerned; NULL when it is the audit as a whole.';
COMMENT ON COLUMN finding.evidence IS 'The figures behind it.';
COMMENT ON COLUMN finding.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN finding.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE report (
    audit_id              VARCHAR PRIMARY KEY,
    html_uri              VARCHAR NOT NULL,
    html_sha256           VARCHAR NOT NULL,
    file_sha256           MAP(VARCHAR, VARCHAR) NOT NULL,
    mlflow_run_id         VARCHAR,
    mlflow_experiment_id  VARCHAR,
    event_sequence        BIGINT NOT NULL,
    salt                  BLOB NOT NULL
);
COMMENT ON TABLE report IS 'The report of each audit.';
COMMENT ON COLUMN report.audit_id IS 'The audit.';
COMMENT ON COLUMN report.html_uri IS 'The HTML file.';
COMMENT ON COLUMN report.html_sha256 IS 'Its digest; also the id of the report in the lineage graph.';
COMMENT ON COLUMN report.file_sha256 IS 'Digest by file name of the files beside it.';
COMMENT ON COLUMN report.mlflow_run_id IS 'The MLflow run of the audit.';
COMMENT ON COLUMN report.mlflow_experiment_id IS 'The experiment of that run.';
COMMENT ON COLUMN report.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN report.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE quarantine (
    quarantine_id   VARCHAR PRIMARY KEY,
    source          VARCHAR NOT NULL,
    record_id       VARCHAR NOT NULL,
    cause           VARCHAR NOT NULL,
    event_sequence  BIGINT NOT NULL,
    salt            BLOB NOT NULL
);
COMMENT ON TABLE quarantine IS 'Records that were refused, with the cause.';
COMMENT ON COLUMN quarantine.quarantine_id IS 'Digest of source, record id and cause.';
COMMENT ON COLUMN quarantine.source IS 'Where the record came from.';
COMMENT ON COLUMN quarantine.record_id IS 'Its id at the source.';
COMMENT ON COLUMN quarantine.cause IS 'Why it was refused.';
COMMENT ON COLUMN quarantine.event_sequence IS 'The event that recorded the row.';
COMMENT ON COLUMN quarantine.salt IS '16 random bytes that enter the digest of the row.';

CREATE TABLE event (
    sequence       BIGINT PRIMARY KEY,
    recorded_at    TIMESTAMPTZ NOT NULL,
    kind           VARCHAR NOT NULL,
    subject        VARCHAR NOT NULL,
    payload        VARCHAR NOT NULL,
    previous_hash  VARCHAR NOT NULL,
    event_hash     VARCHAR NOT NULL
);
COMMENT ON TABLE event IS 'The history of the ledger: one entry per write, each carrying the hash of the one before.';
COMMENT ON COLUMN event.sequence IS 'Number of the entry, from 1, without gaps.';
COMMENT ON COLUMN event.recorded_at IS 'When it was written, UTC.';
COMMENT ON COLUMN event.kind IS 'What was recorded.';
COMMENT ON COLUMN event.subject IS 'The id it was recorded under.';
COMMENT ON COLUMN event.payload IS 'Canonical JSON: per table the number of rows and the Merkle root over their digests.';
COMMENT ON COLUMN event.previous_hash IS 'event_hash of the entry before; 64 zeros in the first.';
COMMENT ON COLUMN event.event_hash IS 'sha256 of the canonical JSON of all other columns.';

CREATE TABLE row_commitment (
    event_sequence  BIGINT NOT NULL,
    table_name      VARCHAR NOT NULL,
    position        BIGINT NOT NULL,
    row_key         VARCHAR NOT NULL,
    row_digest      BLOB NOT NULL
);
COMMENT ON TABLE row_commitment IS 'The leaves of the Merkle trees: what each event promised about each row, so that verify can name a row.';
COMMENT ON COLUMN row_commitment.event_sequence IS 'The event.';
COMMENT ON COLUMN row_commitment.table_name IS 'The table of the row.';
COMMENT ON COLUMN row_commitment.position IS 'Place among the rows of that event and table, in key order, from 0.';
COMMENT ON COLUMN row_commitment.row_key IS 'JSON array of the key columns.';
COMMENT ON COLUMN row_commitment.row_digest IS 'sha256 over salt and row.';
