-- Configuration: see the file of the same name for CockroachDB.
CREATE TABLE device_config (
    device_id  TEXT NOT NULL,
    key        TEXT NOT NULL,
    value      TEXT NOT NULL,
    hlc        INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    changed_by TEXT NOT NULL,
    PRIMARY KEY (device_id, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE config_history (
    device_id  TEXT NOT NULL,
    key        TEXT NOT NULL,
    hlc        INTEGER NOT NULL,
    value      TEXT NOT NULL,
    changed_at INTEGER NOT NULL,
    changed_by TEXT NOT NULL,
    PRIMARY KEY (device_id, key, hlc)
) STRICT, WITHOUT ROWID;

CREATE TABLE reported_config (
    device_id   TEXT NOT NULL,
    key         TEXT NOT NULL,
    value       TEXT NOT NULL,
    hlc         INTEGER NOT NULL,
    failure     TEXT,
    reported_at INTEGER NOT NULL,
    PRIMARY KEY (device_id, key)
) STRICT, WITHOUT ROWID;
