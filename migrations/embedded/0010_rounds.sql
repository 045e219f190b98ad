-- What one bridge at a time does for all, and indexes of what is asked again and again: see the file of the same name
-- for CockroachDB. Times are microseconds since the Unix epoch.
CREATE TABLE rounds (
    name     TEXT NOT NULL,
    begun_at INTEGER NOT NULL,
    place    TEXT NOT NULL,
    PRIMARY KEY (name)
) STRICT, WITHOUT ROWID;

CREATE INDEX reported_config_failed ON reported_config (device_id, key) WHERE failure IS NOT NULL;

CREATE INDEX dead_letters_latest ON dead_letters (received_at, device_id, payload_digest);

CREATE INDEX alerts_resolved ON alerts (resolved_at) WHERE resolved_at IS NOT NULL;
