-- Commands, kept before they are sent, with what their devices said of them.
CREATE TABLE commands (
    device_id  TEXT NOT NULL,
    -- A UUID of version 7 in hexadecimal digits: later ones sort behind.
    id         TEXT NOT NULL,
    name       TEXT NOT NULL,
    arguments  TEXT NOT NULL,
    priority   INT2 NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('queued', 'sent', 'delivered', 'running',
                   'succeeded', 'failed', 'expired', 'cancelled', 'unknown')),
    -- How final the state is: 0 queued, 1 sent or given up by the bridge, 2 delivered, 3 running,
    -- 4 ended by the device's word. A word only ever raises it.
    step       INT2 NOT NULL,
    percent    INT2 NOT NULL,
    output     TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    created_by TEXT NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    sent_times INT8 NOT NULL,
    sent_at    TIMESTAMPTZ,
    heard_at   TIMESTAMPTZ,
    ended_at   TIMESTAMPTZ,
    -- It was withdrawn, and the device is to be told.
    cancel     BOOL NOT NULL,
    -- When it is to be sent, again; NULL when there is nothing to send.
    due_at     TIMESTAMPTZ,
    PRIMARY KEY (device_id, id)
);

-- Read: the dispatchers' claim. Holds what is on its way and nothing else, so it stays small and
-- its hot end, with commands at the pace of people, cool.
CREATE INDEX commands_due ON commands (due_at) WHERE due_at IS NOT NULL;
