-- Commands, kept before they are sent, with what their devices said of them: see the file of the
-- same name for CockroachDB. Times are microseconds since the Unix epoch.
CREATE TABLE commands (
    device_id  TEXT NOT NULL,
    id         TEXT NOT NULL,
    name       TEXT NOT NULL,
    arguments  TEXT NOT NULL,
    priority   INTEGER NOT NULL,
    state      TEXT NOT NULL,
    step       INTEGER NOT NULL,
    percent    INTEGER NOT NULL,
    output     TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    sent_times INTEGER NOT NULL,
    sent_at    INTEGER,
    heard_at   INTEGER,
    ended_at   INTEGER,
    cancel     INTEGER NOT NULL,
    due_at     INTEGER,
    PRIMARY KEY (device_id, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX commands_due ON commands (due_at) WHERE due_at IS NOT NULL;
