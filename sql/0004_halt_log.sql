-- Who halted and resumed trading, in which way and why, and what the guardian did about it.
--
-- A copy of audit.jsonl in the run directory, which is written first: a halt must not wait for a
-- database.  The id is the line's own, so a line that is copied twice is stored once.

CREATE TABLE hftpipe.halt_log (
    id     uuid        PRIMARY KEY,
    run    bigint,
    at     timestamptz NOT NULL,
    action text        NOT NULL,
    way    text        NOT NULL,
    who    text        NOT NULL,
    reason text        NOT NULL,
    epoch  bigint,
    line   jsonb       NOT NULL
);
CREATE INDEX halt_log_at ON hftpipe.halt_log (at);
COMMENT ON TABLE hftpipe.halt_log IS 'Halts, resumes, cancels and closed positions: the lines of audit.jsonl.';
COMMENT ON COLUMN hftpipe.halt_log.run IS 'Run it concerned; NULL when there was none.';
COMMENT ON COLUMN hftpipe.halt_log.action IS 'halt, resume, swept, flatten, closed, alert.';
COMMENT ON COLUMN hftpipe.halt_log.way IS 'How it came: cli, helper, file, signal, socket, http, page, supervisor, guardian, trigger, drill.';
COMMENT ON COLUMN hftpipe.halt_log.epoch IS 'Halt epoch that it made or answered.';
COMMENT ON COLUMN hftpipe.halt_log.line IS 'The whole line.';

DO $$
BEGIN
    CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON hftpipe.halt_log
        FOR EACH STATEMENT EXECUTE FUNCTION hftpipe.refuse();
    ALTER TABLE hftpipe.halt_log ENABLE ALWAYS TRIGGER append_only;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'hftpipe_writer') THEN
        GRANT INSERT ON hftpipe.halt_log TO hftpipe_writer;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'hftpipe_reader') THEN
        GRANT SELECT ON hftpipe.halt_log TO hftpipe_reader;
    END IF;
END $$;
