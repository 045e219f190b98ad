-- What sensors are, as their devices declare it: units, descriptions, types. One row a sensor that was ever declared; one
-- whose declaration was taken back has a row of nothing. Of two versions the later one stays, and of equal ones the one
-- with the greater digest.
-- Read: of a device by page, and some by name, by key. At most 4,096 rows a device.
CREATE TABLE sensors (
    device_id   TEXT NOT NULL,
    sensor      TEXT NOT NULL,
    unit        TEXT,
    description TEXT,
    value_type  TEXT,
    min_value   FLOAT8,
    max_value   FLOAT8,
    -- One of the two, or none.
    decimals    INT8,
    step        FLOAT8,
    interval_ms INT8,
    hlc         INT8 NOT NULL,
    digest      INT8 NOT NULL,
    -- When a bridge took this version.
    declared_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (device_id, sensor)
);
