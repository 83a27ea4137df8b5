-- What people ask of a running gate, and what became of it.  Who asked is what the kernel said.

CREATE TABLE hftpipe.operator_event (
    id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT now(),
    run     bigint      NOT NULL,
    who     text        NOT NULL,
    command text        NOT NULL,
    reason  text        NOT NULL,
    outcome text        NOT NULL CHECK (outcome IN ('asked', 'done', 'refused')),
    event   bigint,
    detail  jsonb       NOT NULL
);
COMMENT ON TABLE hftpipe.operator_event IS 'Every request at the control socket that concerns the gate. What loosens it is written as asked before it is done; what tightens it is done first.';
COMMENT ON COLUMN hftpipe.operator_event.event IS 'Identity of the FIGURE that told risk; NULL before it was sent, or when it was refused.';
COMMENT ON COLUMN hftpipe.operator_event.detail IS 'What was asked for, and why it was refused.';

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON hftpipe.operator_event
    FOR EACH STATEMENT EXECUTE FUNCTION hftpipe.refuse();
ALTER TABLE hftpipe.operator_event ENABLE ALWAYS TRIGGER append_only;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'hftpipe_writer') THEN
        GRANT INSERT ON hftpipe.operator_event TO hftpipe_writer;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'hftpipe_reader') THEN
        GRANT SELECT ON hftpipe.operator_event TO hftpipe_reader;
    END IF;
END $$;
