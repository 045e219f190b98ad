-- Whoever asks for a command may name the request: the same request again is then the same command.
-- The name counts among those of one caller, for one device or for many; it goes with its row.
ALTER TABLE commands ADD COLUMN request_key TEXT;
-- Of what was asked: the same name for something else is a mistake.
ALTER TABLE commands ADD COLUMN request_digest INT8;
ALTER TABLE fan_outs ADD COLUMN request_key TEXT;
ALTER TABLE fan_outs ADD COLUMN request_digest INT8;
