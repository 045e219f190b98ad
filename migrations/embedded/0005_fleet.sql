-- Labels, retirement, fan-outs and groups: see the file of the same name for CockroachDB.
ALTER TABLE devices ADD COLUMN retired_at INTEGER;

CREATE TABLE device_labels (
    device_id TEXT NOT NULL,
    key       TEXT NOT NULL,
    value     TEXT NOT NULL,
    PRIMARY KEY (device_id, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX device_labels_value ON device_labels (key, value, device_id);

CREATE TABLE fan_outs (
    id              TEXT NOT NULL,
    name            TEXT NOT NULL,
    arguments       TEXT NOT NULL,
    priority        INTEGER NOT NULL,
    labels          TEXT NOT NULL,
    interval_micros INTEGER NOT NULL,
    ttl_micros      INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    created_by      TEXT NOT NULL,
    devices         INTEGER NOT NULL,
    after_device    TEXT NOT NULL,
    next_due_at     INTEGER NOT NULL,
    expires_at      INTEGER NOT NULL,
    spread          INTEGER NOT NULL,
    cancelled_at    INTEGER,
    unfinished      INTEGER NOT NULL,
    touched_at      INTEGER NOT NULL,
    PRIMARY KEY (id)
) STRICT, WITHOUT ROWID;

CREATE INDEX fan_outs_unfinished ON fan_outs (touched_at) WHERE unfinished;

CREATE INDEX commands_fan_out ON commands (id, state, device_id);

CREATE INDEX commands_expiry ON commands (expires_at) WHERE step <= 1 AND ended_at IS NULL;

CREATE TABLE group_config (
    group_name TEXT NOT NULL,
    key        TEXT NOT NULL,
    value      TEXT NOT NULL,
    hlc        INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    changed_by TEXT NOT NULL,
    PRIMARY KEY (group_name, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE group_history (
    group_name TEXT NOT NULL,
    key        TEXT NOT NULL,
    hlc        INTEGER NOT NULL,
    value      TEXT NOT NULL,
    changed_at INTEGER NOT NULL,
    changed_by TEXT NOT NULL,
    PRIMARY KEY (group_name, hlc, key)
) STRICT, WITHOUT ROWID;

ALTER TABLE config_history ADD COLUMN from_group TEXT;

CREATE INDEX config_history_latest ON config_history (device_id, hlc, key);
