-- What one bridge at a time does for all: when one began last, by the database's time, and where the next one goes on.
CREATE TABLE rounds (
    name     TEXT NOT NULL,
    begun_at TIMESTAMPTZ NOT NULL,
    place    TEXT NOT NULL,
    PRIMARY KEY (name)
);

-- Read: by each round of alerts. Holds settings that are not in force and nothing else.
CREATE INDEX reported_config_failed ON reported_config (device_id, key) WHERE failure IS NOT NULL;

-- Read: by each round of alerts, by lists, and by retention.
CREATE INDEX dead_letters_latest ON dead_letters (received_at, device_id, payload_digest);

-- Read: by what drops alerts that were resolved long ago.
CREATE INDEX alerts_resolved ON alerts (resolved_at) WHERE resolved_at IS NOT NULL;
