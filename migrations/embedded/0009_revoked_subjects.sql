-- Whose tokens were all revoked: see the file of the same name for CockroachDB.
CREATE TABLE revoked_subjects (
    subject      TEXT NOT NULL,
    issued_until INTEGER NOT NULL,
    reason       TEXT NOT NULL,
    revoked_at   INTEGER NOT NULL,
    revoked_by   TEXT NOT NULL,
    PRIMARY KEY (subject)
) STRICT, WITHOUT ROWID;
