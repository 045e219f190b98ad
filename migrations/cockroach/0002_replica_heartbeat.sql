-- One row that bridges touch while they read from replicas: what it says there, against the
-- clock, is how old a replica's answers are.
CREATE TABLE replica_heartbeat (
    id      INT8 NOT NULL CHECK (id = 1),
    beat_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (id)
);
