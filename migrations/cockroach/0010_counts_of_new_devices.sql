-- A device that is met from now on is counted from its beginning. `expired` of older ones stays NULL
-- for ever: what retention removed of them before nobody counted.
ALTER TABLE devices ALTER COLUMN superseded SET DEFAULT 0;
ALTER TABLE devices ALTER COLUMN expired SET DEFAULT 0;
