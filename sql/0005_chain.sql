-- Proof that no row was altered, removed, added or moved: a SHA-256 chain per stream.
--
-- Every batch of a stream adds one link in the transaction that inserts its rows.  Triggers only
-- deter a superuser; the head of the chain, kept outside of the database, convicts one.

CREATE TABLE hftpipe.chain (
    run    bigint   NOT NULL,
    stream smallint NOT NULL,
    first  bigint   NOT NULL CHECK (first >= 1),
    last   bigint   NOT NULL CHECK (last >= first),
    digest bytea    NOT NULL,
    leaves bytea    NOT NULL CHECK (length(leaves) = 8 * (last - first + 1)),
    head   bytea    NOT NULL,
    PRIMARY KEY (run, stream, last)
);
ALTER TABLE hftpipe.chain ALTER COLUMN leaves SET STORAGE EXTERNAL;     -- it does not compress
COMMENT ON TABLE hftpipe.chain IS 'One link per batch of a stream; src/store/chain.py says what is hashed.';
COMMENT ON COLUMN hftpipe.chain.digest IS 'SHA-256 of the rows as COPY BINARY has them.';
COMMENT ON COLUMN hftpipe.chain.leaves IS 'First 8 bytes of the SHA-256 of each row without its identity, by seq: they find the row.';
COMMENT ON COLUMN hftpipe.chain.head IS 'SHA-256 of the previous head, the range, digest and leaves.';

ALTER TABLE hftpipe.mark ADD COLUMN head bytea NOT NULL DEFAULT '';
COMMENT ON COLUMN hftpipe.mark.head IS 'Head of the chain at seq; empty before the first row.';

DO $$
BEGIN
    CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON hftpipe.chain
        FOR EACH STATEMENT EXECUTE FUNCTION hftpipe.refuse();
    ALTER TABLE hftpipe.chain ENABLE ALWAYS TRIGGER append_only;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'hftpipe_writer') THEN
        GRANT INSERT ON hftpipe.chain TO hftpipe_writer;
        GRANT UPDATE (head) ON hftpipe.mark TO hftpipe_writer;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'hftpipe_reader') THEN
        GRANT SELECT ON hftpipe.chain TO hftpipe_reader;
    END IF;
END $$;
