-- The desired configuration of each device, last writer wins by clock. A removed key is 'null'.
-- Read: by device.
CREATE TABLE device_config (
    device_id  TEXT NOT NULL,
    key        TEXT NOT NULL,
    value      TEXT NOT NULL,
    hlc        INT8 NOT NULL,
    changed_at TIMESTAMPTZ NOT NULL,
    changed_by TEXT NOT NULL,
    PRIMARY KEY (device_id, key)
);

-- Every value that was ever desired: who, when, what.
-- Read: by device and key.
CREATE TABLE config_history (
    device_id  TEXT NOT NULL,
    key        TEXT NOT NULL,
    hlc        INT8 NOT NULL,
    value      TEXT NOT NULL,
    changed_at TIMESTAMPTZ NOT NULL,
    changed_by TEXT NOT NULL,
    PRIMARY KEY (device_id, key, hlc)
);

-- What each device says of its configuration: the values that it has, and why one is not in force.
-- Read: by device.
CREATE TABLE reported_config (
    device_id   TEXT NOT NULL,
    key         TEXT NOT NULL,
    value       TEXT NOT NULL,
    hlc         INT8 NOT NULL,
    failure     TEXT,
    reported_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (device_id, key)
);
