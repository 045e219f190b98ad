-- Who may use the API no more, and who did what through it.

-- Tokens that were revoked before their end.
-- Read: by name, whenever a bridge sees a token that it has not asked about for two seconds.
CREATE TABLE revoked_tokens (
    jti        TEXT NOT NULL,
    subject    TEXT NOT NULL,
    reason     TEXT NOT NULL,
    revoked_at TIMESTAMPTZ NOT NULL,
    revoked_by TEXT NOT NULL,
    -- When the token would have ended: from then on the row says nothing.
    expires_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (jti)
);

-- What was changed and refused. At the pace of people; failed attempts are limited by address.
-- Read: latest first.
CREATE TABLE audit_log (
    at      TIMESTAMPTZ NOT NULL,
    -- Random: tells entries of one moment apart.
    id      INT8 NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    target  TEXT NOT NULL,
    address TEXT NOT NULL,
    outcome TEXT NOT NULL,
    PRIMARY KEY (at, id)
);
