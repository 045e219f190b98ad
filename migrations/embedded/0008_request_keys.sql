-- Names of requests for commands: see the files of the same name for CockroachDB.
ALTER TABLE commands ADD COLUMN request_key TEXT;
ALTER TABLE commands ADD COLUMN request_digest INTEGER;
ALTER TABLE fan_outs ADD COLUMN request_key TEXT;
ALTER TABLE fan_outs ADD COLUMN request_digest INTEGER;

CREATE UNIQUE INDEX commands_request ON commands (device_id, created_by, request_key)
    WHERE request_key IS NOT NULL;

CREATE UNIQUE INDEX fan_outs_request ON fan_outs (created_by, request_key)
    WHERE request_key IS NOT NULL;
