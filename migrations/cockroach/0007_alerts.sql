-- What a person should look at: opened when a rule finds it, seen again while it lasts, resolved
-- when a round finds it no more.

-- Read: open ones by rule and device; all of them, latest first.
CREATE TABLE alerts (
    -- Random.
    id              TEXT NOT NULL,
    rule            TEXT NOT NULL,
    -- '' when it is about the whole fleet.
    device_id       TEXT NOT NULL,
    detail          TEXT NOT NULL,
    opened_at       TIMESTAMPTZ NOT NULL,
    last_seen_at    TIMESTAMPTZ NOT NULL,
    acknowledged_at TIMESTAMPTZ,
    acknowledged_by TEXT,
    resolved_at     TIMESTAMPTZ,
    PRIMARY KEY (id)
);

-- One open alert for each thing.
CREATE UNIQUE INDEX alerts_open ON alerts (rule, device_id) WHERE resolved_at IS NULL;

CREATE INDEX alerts_latest ON alerts (opened_at DESC, id DESC);

-- When bridges last looked: one of them does, for all.
CREATE TABLE alert_rounds (
    id       INT8 NOT NULL CHECK (id = 1),
    begun_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (id)
);
