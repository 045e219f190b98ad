-- Readings on their way out, which a file has not: always empty. Who counts a device's rows looks here, too; see the file of
-- the same name for CockroachDB.
CREATE TABLE telemetry_data_leaving (
    device_id   TEXT NOT NULL,
    sensor      TEXT NOT NULL,
    observed_at INTEGER NOT NULL,
    PRIMARY KEY (device_id, sensor, observed_at)
) STRICT, WITHOUT ROWID;
