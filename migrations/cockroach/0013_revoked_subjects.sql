-- Whose tokens were all revoked: those that were issued until then count no more.
-- Read: by name, with revoked_tokens.
CREATE TABLE revoked_subjects (
    subject      TEXT NOT NULL,
    issued_until TIMESTAMPTZ NOT NULL,
    reason       TEXT NOT NULL,
    revoked_at   TIMESTAMPTZ NOT NULL,
    revoked_by   TEXT NOT NULL,
    PRIMARY KEY (subject)
);
