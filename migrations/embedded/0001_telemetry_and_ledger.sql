-- Telemetry, the delivery ledger, and who sent them: the tables of migrations/cockroach/0001 in one
-- libSQL file. Times are microseconds since the Unix epoch. Numbers are in columns of type ANY:
-- SQLite writes 0.0 and -0.0 in a REAL column as the integer 0, and the sign is lost.

CREATE TABLE devices (
    device_id      TEXT NOT NULL,
    first_seen     INTEGER NOT NULL,
    last_seen      INTEGER NOT NULL,
    online         INTEGER NOT NULL,
    session        INTEGER,
    session_before INTEGER,
    epoch          INTEGER,
    agent_version  TEXT,
    PRIMARY KEY (device_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE telemetry_data (
    device_id   TEXT NOT NULL,
    sensor      TEXT NOT NULL,
    observed_at INTEGER NOT NULL,
    -- Exactly one of the four is set.
    value_f64   ANY,
    value_i64   INTEGER,
    value_bool  INTEGER,
    value_text  TEXT,
    quality     INTEGER NOT NULL,
    hlc         INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    PRIMARY KEY (device_id, sensor, observed_at)
) STRICT, WITHOUT ROWID;

CREATE TABLE sync_status (
    device_id          TEXT NOT NULL,
    epoch              INTEGER NOT NULL,
    first_seen         INTEGER NOT NULL,
    last_seen          INTEGER NOT NULL,
    ledger_version     INTEGER NOT NULL,
    merge_due          INTEGER NOT NULL,
    reported_at        INTEGER,
    device_time_ms     INTEGER,
    reported_accepted  INTEGER,
    reported_committed INTEGER,
    reported_pending   INTEGER,
    reported_evicted   INTEGER,
    reported_rejected  INTEGER,
    PRIMARY KEY (device_id, epoch)
) STRICT, WITHOUT ROWID;

CREATE INDEX sync_status_merge_due ON sync_status (device_id, epoch) WHERE merge_due;

CREATE TABLE ledger (
    device_id    TEXT NOT NULL,
    epoch        INTEGER NOT NULL,
    first_seq    INTEGER NOT NULL,
    kind         TEXT NOT NULL CHECK (kind IN ('committed', 'rejected', 'evicted')),
    last_seq     INTEGER NOT NULL,
    digest       INTEGER NOT NULL,
    hlc_max      INTEGER,
    observed_min INTEGER,
    observed_max INTEGER,
    reason       TEXT,
    recorded_at  INTEGER NOT NULL,
    PRIMARY KEY (device_id, epoch, first_seq, kind),
    CHECK (first_seq >= 1 AND last_seq >= first_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE conflicts (
    device_id    TEXT NOT NULL,
    sensor       TEXT NOT NULL,
    observed_at  INTEGER NOT NULL,
    hlc          INTEGER NOT NULL,
    epoch        INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    value_f64    ANY,
    value_i64    INTEGER,
    value_bool   INTEGER,
    value_text   TEXT,
    quality      INTEGER NOT NULL,
    received_at  INTEGER NOT NULL,
    winner_hlc   INTEGER NOT NULL,
    winner_epoch INTEGER NOT NULL,
    winner_seq   INTEGER NOT NULL,
    recorded_at  INTEGER NOT NULL,
    PRIMARY KEY (device_id, sensor, observed_at, hlc, epoch, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE dead_letters (
    device_id      TEXT NOT NULL,
    payload_digest INTEGER NOT NULL,
    topic          TEXT NOT NULL,
    payload        BLOB NOT NULL,
    payload_bytes  INTEGER NOT NULL,
    reason         TEXT NOT NULL,
    times          INTEGER NOT NULL,
    received_at    INTEGER NOT NULL,
    PRIMARY KEY (device_id, payload_digest)
) STRICT;
