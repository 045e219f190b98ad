-- Rows of the small tables that made no sense, in words, for a person: `sqlite3 buffer.db
-- "SELECT datetime(at_ms / 1000, 'unixepoch'), place, content FROM set_aside"`. The newest hundred
-- are kept; the agent only counts them.
CREATE TABLE set_aside (
    id      INTEGER PRIMARY KEY,
    at_ms   INTEGER NOT NULL, -- milliseconds since the Unix epoch
    place   BLOB    NOT NULL, -- the table that the row was in
    content BLOB    NOT NULL
);
