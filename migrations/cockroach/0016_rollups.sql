-- Rollups: what the numbers of a sensor were within each hour and minute, so that a chart of a year reads no readings.
-- Made anew, by whichever bridge claims it, from the readings whenever those change.

-- One row for each device: which hours have rollups. Locked by whoever works on them, and by no one who writes readings.
CREATE TABLE rollup_status (
    device_id    TEXT NOT NULL,
    -- Hours that begin earlier have none: retention has, or may have, taken readings of theirs.
    rolled_from  TIMESTAMPTZ,
    -- Hours that begin earlier have theirs, or a mark. NULL: none has, and nobody marks.
    rolled_until TIMESTAMPTZ,
    PRIMARY KEY (device_id)
);

-- Hours of a sensor whose rollups are not what its readings say, written in the commit in which that becomes so.
-- Nearly always small: readings that come late, replaced ones, and each hour once when it is over.
CREATE TABLE rollup_marks (
    device_id  TEXT NOT NULL,
    sensor     TEXT NOT NULL,
    hour_at    TIMESTAMPTZ NOT NULL,
    -- Counts the commits that marked it: who has computed the hour removes the mark that it began with, and no later one.
    marks      INT8 NOT NULL,
    marked_at  TIMESTAMPTZ NOT NULL,
    touched_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (device_id, sensor, hour_at)
);

-- Read: the oldest, by who computes.
CREATE INDEX rollup_marks_oldest ON rollup_marks (marked_at);

-- One row for each hour and quality of which there are numbers.
-- Read: by device, sensor and time.
CREATE TABLE telemetry_hours (
    device_id    TEXT NOT NULL,
    sensor       TEXT NOT NULL,
    start_at     TIMESTAMPTZ NOT NULL,
    -- 0 good, 1 uncertain, 2 bad.
    quality      INT2 NOT NULL,
    -- How many readings with a number; a text is none, false is 0 and true 1.
    numbers      INT8 NOT NULL,
    low          FLOAT8 NOT NULL,
    high         FLOAT8 NOT NULL,
    -- The sum of those below 1e290, and that of the others divided by 2^40: their own may not be finite.
    small_sum    FLOAT8 NOT NULL,
    big_sum      FLOAT8 NOT NULL,
    first_at     TIMESTAMPTZ NOT NULL,
    first_number FLOAT8 NOT NULL,
    last_at      TIMESTAMPTZ NOT NULL,
    last_number  FLOAT8 NOT NULL,
    -- The hour has rows in telemetry_minutes: it holds so many readings that they are worth it.
    has_minutes  BOOL NOT NULL,
    PRIMARY KEY (device_id, sensor, start_at, quality)
);

-- The same for each minute of such hours.
CREATE TABLE telemetry_minutes (
    device_id    TEXT NOT NULL,
    sensor       TEXT NOT NULL,
    start_at     TIMESTAMPTZ NOT NULL,
    quality      INT2 NOT NULL,
    numbers      INT8 NOT NULL,
    low          FLOAT8 NOT NULL,
    high         FLOAT8 NOT NULL,
    small_sum    FLOAT8 NOT NULL,
    big_sum      FLOAT8 NOT NULL,
    first_at     TIMESTAMPTZ NOT NULL,
    first_number FLOAT8 NOT NULL,
    last_at      TIMESTAMPTZ NOT NULL,
    last_number  FLOAT8 NOT NULL,
    PRIMARY KEY (device_id, sensor, start_at, quality)
);

-- Readings of this file that are earlier are marked. NULL: all are, where the device has rollups.
ALTER TABLE sync_status ADD COLUMN rolled_until TIMESTAMPTZ;

-- Goes with ledger_version where the bridges that write know of marks. Where it differs an older one has written, and the
-- device's rollups are begun anew.
ALTER TABLE sync_status ADD COLUMN marked_version INT8;
