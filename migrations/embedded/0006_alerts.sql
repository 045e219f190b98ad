-- What a person should look at: see the file of the same name for CockroachDB. Times are
-- microseconds since the Unix epoch.
CREATE TABLE alerts (
    id              TEXT NOT NULL,
    rule            TEXT NOT NULL,
    device_id       TEXT NOT NULL,
    detail          TEXT NOT NULL,
    opened_at       INTEGER NOT NULL,
    last_seen_at    INTEGER NOT NULL,
    acknowledged_at INTEGER,
    acknowledged_by TEXT,
    resolved_at     INTEGER,
    PRIMARY KEY (id)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX alerts_open ON alerts (rule, device_id) WHERE resolved_at IS NULL;

CREATE INDEX alerts_latest ON alerts (opened_at DESC, id DESC);

CREATE TABLE alert_rounds (
    id       INTEGER NOT NULL CHECK (id = 1),
    begun_at INTEGER NOT NULL,
    PRIMARY KEY (id)
) STRICT, WITHOUT ROWID;
