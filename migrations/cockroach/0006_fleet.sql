-- Labels of devices, retirement, one command to many devices, and the configuration of groups.

-- A device that is retired is left out of lists and fan-outs, and gets nothing sent.
ALTER TABLE devices ADD COLUMN retired_at TIMESTAMPTZ;

-- What people call a part of the fleet by. The label 'group' names the device's group.
-- Read: by device; and by key and value, in the order of the devices.
CREATE TABLE device_labels (
    device_id TEXT NOT NULL,
    key       TEXT NOT NULL,
    value     TEXT NOT NULL,
    PRIMARY KEY (device_id, key)
);

CREATE INDEX device_labels_value ON device_labels (key, value, device_id);

-- One row for each command to many devices. Its rows in commands have the same id; they are made
-- page by page, behind after_device, and this row remembers how far that is.
CREATE TABLE fan_outs (
    id              TEXT NOT NULL,
    name            TEXT NOT NULL,
    arguments       TEXT NOT NULL,
    priority        INT2 NOT NULL,
    -- A JSON object; all of them hold for each of the devices.
    labels          TEXT NOT NULL,
    -- From one device's turn to the next one's, and how long the command may wait from there on.
    interval_micros INT8 NOT NULL,
    ttl_micros      INT8 NOT NULL,
    created_at      TIMESTAMPTZ NOT NULL,
    created_by      TEXT NOT NULL,
    devices         INT8 NOT NULL,
    after_device    TEXT NOT NULL,
    -- The turn of the next device, and when the last one's command expires.
    next_due_at     TIMESTAMPTZ NOT NULL,
    expires_at      TIMESTAMPTZ NOT NULL,
    -- Every device has its row.
    spread          BOOL NOT NULL,
    cancelled_at    TIMESTAMPTZ,
    -- Rows are to be made or withdrawn; who does so was last at it then.
    unfinished      BOOL NOT NULL,
    touched_at      TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (id)
);

-- Read: what a bridge left unfinished. Nearly always empty.
CREATE INDEX fan_outs_unfinished ON fan_outs (touched_at) WHERE unfinished;

-- Read: which devices got a command, by state.
CREATE INDEX commands_fan_out ON commands (id, state, device_id);

-- Read: what expired unheard. Holds what was not sent, or not answered.
CREATE INDEX commands_expiry ON commands (expires_at) WHERE step <= 1 AND ended_at IS NULL;

-- What is desired of each group, and every value that ever was: as for a device. Each change is
-- written to the members' device_config in the same commit.
CREATE TABLE group_config (
    group_name TEXT NOT NULL,
    key        TEXT NOT NULL,
    value      TEXT NOT NULL,
    hlc        INT8 NOT NULL,
    changed_at TIMESTAMPTZ NOT NULL,
    changed_by TEXT NOT NULL,
    PRIMARY KEY (group_name, key)
);

CREATE TABLE group_history (
    group_name TEXT NOT NULL,
    key        TEXT NOT NULL,
    hlc        INT8 NOT NULL,
    value      TEXT NOT NULL,
    changed_at TIMESTAMPTZ NOT NULL,
    changed_by TEXT NOT NULL,
    PRIMARY KEY (group_name, hlc, key)
);

-- The group that a device's value came from. What a device leaves behind with its group is found by it.
ALTER TABLE config_history ADD COLUMN from_group TEXT;

-- Read: latest first, page by page.
CREATE INDEX config_history_latest ON config_history (device_id, hlc, key);
