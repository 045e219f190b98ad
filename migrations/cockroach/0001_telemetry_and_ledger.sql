-- Telemetry, the delivery ledger, and who sent them.
--
-- Valid on CockroachDB 24.1 and later and on PostgreSQL 13 and later. Keys begin with the device,
-- so that writes spread over ranges; no sequences; widths are explicit because INT has 64 bits on
-- the one and 32 on the other. On PostgreSQL create the database with a C locale: keys then
-- compare bytewise, as they do on CockroachDB.

-- One row for each device that was ever heard of.
-- Read: GET /api/v1/devices, by key.
CREATE TABLE devices (
    device_id      TEXT NOT NULL,
    first_seen     TIMESTAMPTZ NOT NULL,
    last_seen      TIMESTAMPTZ NOT NULL,
    online         BOOL NOT NULL,
    -- Of the connection that the last birth was from, and of the one before it: its late will
    -- must not end the new one.
    session        INT8,
    session_before INT8,
    epoch          INT8,
    agent_version  TEXT,
    PRIMARY KEY (device_id)
);

-- One row for each reading, the highest version's.
-- Read: by device, sensor and time; a range of sequences is found through the times that the
-- ledger keeps with it, so that writing needs no second index.
CREATE TABLE telemetry_data (
    device_id   TEXT NOT NULL,
    sensor      TEXT NOT NULL,
    observed_at TIMESTAMPTZ NOT NULL,
    -- Exactly one of the four is set.
    value_f64   FLOAT8,
    value_i64   INT8,
    value_bool  BOOL,
    value_text  TEXT,
    -- 0 good, 1 uncertain, 2 bad.
    quality     INT2 NOT NULL,
    -- The version: the higher (hlc, epoch, seq) wins.
    hlc         INT8 NOT NULL,
    epoch       INT8 NOT NULL,
    seq         INT8 NOT NULL,
    received_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (device_id, sensor, observed_at)
);

-- One row for each buffer file: where its ledger stands, and what its device last reported.
-- Each commit updates its row in place, so pages keep room for that (CockroachDB ignores it).
CREATE TABLE sync_status (
    device_id          TEXT NOT NULL,
    epoch              INT8 NOT NULL,
    first_seen         TIMESTAMPTZ NOT NULL,
    last_seen          TIMESTAMPTZ NOT NULL,
    -- Counts the writes to this file's ledger; a write names the one that it builds on.
    ledger_version     INT8 NOT NULL,
    -- The ledger has rows that could be one.
    merge_due          BOOL NOT NULL,
    reported_at        TIMESTAMPTZ,
    device_time_ms     INT8,
    reported_accepted  INT8,
    reported_committed INT8,
    reported_pending   INT8,
    reported_evicted   INT8,
    reported_rejected  INT8,
    PRIMARY KEY (device_id, epoch)
) WITH (fillfactor = 50);

-- Read: the merge task's claim, every few minutes. Nearly always empty.
CREATE INDEX sync_status_merge_due ON sync_status (device_id, epoch) WHERE merge_due;

-- One row for each range of sequences: committed, rejected or evicted. Ranges of one kind are
-- disjoint.
CREATE TABLE ledger (
    device_id    TEXT NOT NULL,
    epoch        INT8 NOT NULL,
    first_seq    INT8 NOT NULL,
    kind         TEXT NOT NULL CHECK (kind IN ('committed', 'rejected', 'evicted')),
    last_seq     INT8 NOT NULL,
    -- Wrapping sum of the rows' digests; 0 where there are no rows.
    digest       INT8 NOT NULL,
    -- Of committed ranges: the highest clock, and the times between which the rows are.
    hlc_max      INT8,
    observed_min TIMESTAMPTZ,
    observed_max TIMESTAMPTZ,
    -- Of rejected ranges.
    reason       TEXT,
    -- When the first part of the range was recorded.
    recorded_at  TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (device_id, epoch, first_seq, kind),
    CHECK (first_seq >= 1 AND last_seq >= first_seq)
) WITH (fillfactor = 50);

-- Versions that lost to a higher one of the same key, whole, with the version that won.
-- Read: by device; and beside telemetry_data when a range is verified.
CREATE TABLE conflicts (
    device_id    TEXT NOT NULL,
    sensor       TEXT NOT NULL,
    observed_at  TIMESTAMPTZ NOT NULL,
    hlc          INT8 NOT NULL,
    epoch        INT8 NOT NULL,
    seq          INT8 NOT NULL,
    value_f64    FLOAT8,
    value_i64    INT8,
    value_bool   BOOL,
    value_text   TEXT,
    quality      INT2 NOT NULL,
    received_at  TIMESTAMPTZ NOT NULL,
    winner_hlc   INT8 NOT NULL,
    winner_epoch INT8 NOT NULL,
    winner_seq   INT8 NOT NULL,
    recorded_at  TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (device_id, sensor, observed_at, hlc, epoch, seq)
);

-- Payloads that could not be used, whole up to a bound. The same payload of the same device is
-- one row. An unknown device is ''.
CREATE TABLE dead_letters (
    device_id      TEXT NOT NULL,
    payload_digest INT8 NOT NULL,
    topic          TEXT NOT NULL,
    payload        BYTEA NOT NULL,
    payload_bytes  INT8 NOT NULL,
    reason         TEXT NOT NULL,
    times          INT8 NOT NULL,
    received_at    TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (device_id, payload_digest)
);
