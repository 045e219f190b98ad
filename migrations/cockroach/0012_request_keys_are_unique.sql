-- A step of its own: CockroachDB makes no partial index on a column of the same transaction.
-- Read: when a request comes that has a name.
CREATE UNIQUE INDEX commands_request ON commands (device_id, created_by, request_key)
    WHERE request_key IS NOT NULL;

CREATE UNIQUE INDEX fan_outs_request ON fan_outs (created_by, request_key)
    WHERE request_key IS NOT NULL;
