-- What sensors are, as their devices declare it: see 0018 for CockroachDB. Times are microseconds since the Unix epoch.
CREATE TABLE sensors (
    device_id   TEXT NOT NULL,
    sensor      TEXT NOT NULL,
    unit        TEXT,
    description TEXT,
    value_type  TEXT,
    min_value   REAL,
    max_value   REAL,
    decimals    INTEGER,
    step        REAL,
    interval_ms INTEGER,
    hlc         INTEGER NOT NULL,
    digest      INTEGER NOT NULL,
    declared_at INTEGER NOT NULL,
    PRIMARY KEY (device_id, sensor)
) STRICT, WITHOUT ROWID;
