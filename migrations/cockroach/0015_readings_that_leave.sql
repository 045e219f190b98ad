-- Readings of a month that are too old, between the moment in which they leave telemetry_data and the one in which they are
-- counted as expired of their devices. On PostgreSQL, where readings are kept by month, a partition stands here for that time;
-- elsewhere the table is empty.
-- Read: by who counts a device's rows.
CREATE TABLE telemetry_data_leaving (
    device_id   TEXT NOT NULL,
    sensor      TEXT NOT NULL,
    observed_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (device_id, sensor, observed_at)
);
