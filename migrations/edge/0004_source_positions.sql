-- Where sources have got to in the files that they follow, each written in the commit of the readings that
-- come before it. So a start reads on behind the last reading that is kept, and reads none twice.
--
-- The number of columns is part of the format, as in 0001.
CREATE TABLE source_positions (
    id        INTEGER PRIMARY KEY, -- a hash of the source's name
    source    BLOB    NOT NULL,
    place     BLOB    NOT NULL,    -- as the source writes it: JSON
    first_row INTEGER NOT NULL,    -- the first row of that commit's readings of the source
    last_row  INTEGER NOT NULL,    -- the last one; below first_row when it brought none
    at_ms     INTEGER NOT NULL,    -- milliseconds since the Unix epoch
    mark      INTEGER NOT NULL
);
