-- Who may use the API no more, and who did what through it: see the file of the same name for
-- CockroachDB. Times are microseconds since the Unix epoch.
CREATE TABLE revoked_tokens (
    jti        TEXT NOT NULL,
    subject    TEXT NOT NULL,
    reason     TEXT NOT NULL,
    revoked_at INTEGER NOT NULL,
    revoked_by TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (jti)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_log (
    at      INTEGER NOT NULL,
    id      INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    target  TEXT NOT NULL,
    address TEXT NOT NULL,
    outcome TEXT NOT NULL,
    PRIMARY KEY (at, id)
) STRICT, WITHOUT ROWID;
