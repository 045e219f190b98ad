-- What sensors are, as it was declared last, and whether the bridge has it. So a start sends nothing again, and stamps
-- what changes later than what it has sent before.
--
-- The number of columns is part of the format, as in 0001.
CREATE TABLE sensor_declarations (
    id       INTEGER PRIMARY KEY, -- a hash of the sensor's name
    name     BLOB    NOT NULL,
    source   BLOB    NOT NULL,    -- what its source says, as a message has it
    declared BLOB    NOT NULL,    -- that, under what the settings say
    hlc      INTEGER NOT NULL,    -- the version that was sent last
    state    INTEGER NOT NULL,    -- 0 has no version yet, 1 is to be sent, 2 the bridge has it
    at_ms    INTEGER NOT NULL,    -- milliseconds since the Unix epoch
    mark     INTEGER NOT NULL
);
