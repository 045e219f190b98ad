-- What is kept aside of each device, and what alerts look for: see 0017 for CockroachDB. Times are microseconds since the
-- Unix epoch.
CREATE TABLE kept_aside (
    kind          TEXT NOT NULL,
    device_id     TEXT NOT NULL,
    kept          INTEGER NOT NULL,
    kept_bytes    INTEGER NOT NULL,
    dropped       INTEGER NOT NULL,
    dropped_bytes INTEGER NOT NULL,
    dropped_at    INTEGER,
    counted_at    INTEGER,
    PRIMARY KEY (kind, device_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX kept_aside_dropped ON kept_aside (dropped_at) WHERE dropped_at IS NOT NULL;

CREATE TABLE dropped_losers (
    device_id   TEXT NOT NULL,
    epoch       INTEGER NOT NULL,
    losers      INTEGER NOT NULL,
    digest_low  INTEGER NOT NULL,
    digest_high INTEGER NOT NULL,
    first_seq   INTEGER NOT NULL,
    last_seq    INTEGER NOT NULL,
    PRIMARY KEY (device_id, epoch)
) STRICT, WITHOUT ROWID;

CREATE TABLE skewed_clocks (
    device_id      TEXT NOT NULL,
    skew_ms        INTEGER NOT NULL,
    device_time_ms INTEGER NOT NULL,
    reported_at    INTEGER NOT NULL,
    PRIMARY KEY (device_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX devices_offline ON devices (device_id) WHERE NOT online AND retired_at IS NULL;

CREATE INDEX alerts_of_device ON alerts (device_id, opened_at DESC, id DESC);

CREATE INDEX alerts_open_latest ON alerts (opened_at DESC, id DESC) WHERE resolved_at IS NULL;

CREATE INDEX dead_letters_of_device ON dead_letters (device_id, received_at, payload_digest);
