-- The edge buffer. Written and read by edge-agent/src/buffer alone.
--
-- Column order and count are part of the format: when a file is damaged, rows are picked from its
-- raw pages and told apart by their number of columns and their mark (a hash over the row).
-- Texts stand as blobs, because a damaged one need not be UTF-8.

-- Names, once each.
CREATE TABLE sensors (
    id   INTEGER PRIMARY KEY,
    name BLOB    NOT NULL,
    mark INTEGER NOT NULL
);

-- Accepted readings that no acknowledgement has freed. The row with the highest sequence stays
-- when it is freed, without its value: the next sequence and the clock follow from it, so that an
-- append writes no page beside the one of its rows.
CREATE TABLE telemetry_data (
    seq         INTEGER PRIMARY KEY, -- from 1 in each epoch, without holes
    hlc         INTEGER NOT NULL,    -- 48 bits of milliseconds, 16 of counter
    observed_at INTEGER NOT NULL,    -- microseconds since the Unix epoch
    sensor      INTEGER NOT NULL,    -- sensors.id
    mark        INTEGER NOT NULL,    -- kind, quality and check, see row.rs
    value                            -- of any type, without affinity
);

-- The device's side of the ledger.
--   kind 1  an epoch: its counters; last_seq is set once it has ended
--   kind 2  settled sequences of an epoch
--   kind 3  sequences that the device gave up, not confirmed by an acknowledgement
--   kind 4  a recovery: the note says what was found and saved
CREATE TABLE sync_log (
    id        INTEGER PRIMARY KEY,
    kind      INTEGER NOT NULL,
    epoch     INTEGER NOT NULL,
    at_ms     INTEGER NOT NULL,
    first_seq INTEGER NOT NULL DEFAULT 0,
    last_seq  INTEGER NOT NULL DEFAULT 0,
    committed INTEGER NOT NULL DEFAULT 0,
    evicted   INTEGER NOT NULL DEFAULT 0,
    rejected  INTEGER NOT NULL DEFAULT 0,
    hlc       INTEGER NOT NULL DEFAULT 0, -- no stamp may be lower than this
    note      BLOB,
    mark      INTEGER NOT NULL
);

-- Desired and reported configuration, last writer wins by hlc.
CREATE TABLE device_config (
    key         TEXT    PRIMARY KEY,
    value       TEXT    NOT NULL, -- JSON
    hlc         INTEGER NOT NULL,
    source      INTEGER NOT NULL, -- 1 the bridge, 2 set on the device
    applied     INTEGER NOT NULL DEFAULT 0,
    failure     TEXT,
    received_at INTEGER NOT NULL  -- milliseconds since the Unix epoch
) WITHOUT ROWID;

-- Commands, stored before they run and kept after, so that none runs twice.
CREATE TABLE command_queue (
    id          BLOB    PRIMARY KEY, -- 128 bits
    name        TEXT    NOT NULL,
    arguments   TEXT    NOT NULL,    -- JSON
    priority    INTEGER NOT NULL,
    state       INTEGER NOT NULL,    -- as schema::message::CommandState counts
    percent     INTEGER NOT NULL DEFAULT 0,
    output      TEXT    NOT NULL DEFAULT '',
    received_at INTEGER NOT NULL,    -- milliseconds since the Unix epoch
    expires_at  INTEGER NOT NULL,
    started_at  INTEGER,
    ended_at    INTEGER,
    reported    INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
