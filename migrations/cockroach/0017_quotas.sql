-- What is kept aside of each device, so that one that sends garbage costs its quota and no more; and what alerts look for,
-- without reading the whole fleet.

-- Dead letters ('dead_letters') and versions that lost ('conflicts') of a device, and what was not kept of them because it, or
-- the fleet, had its quota. Letters of no known device are of ''. One row a kind and device of which there ever was one.
-- Written by the transaction that keeps them; counted anew where it is doubted, because retention does not write here.
-- Read: by that transaction, by lists, by key; the sum of a kind every few seconds while something is kept aside.
CREATE TABLE kept_aside (
    kind          TEXT NOT NULL,
    device_id     TEXT NOT NULL,
    kept          INT8 NOT NULL,
    kept_bytes    INT8 NOT NULL,
    dropped       INT8 NOT NULL,
    dropped_bytes INT8 NOT NULL,
    -- When something was dropped last, and when the rows were counted last.
    dropped_at    TIMESTAMPTZ,
    counted_at    TIMESTAMPTZ,
    PRIMARY KEY (kind, device_id)
);

-- Read: by each round of alerts.
CREATE INDEX kept_aside_dropped ON kept_aside (dropped_at) WHERE dropped_at IS NOT NULL;

-- Versions that lost and were not kept, of each epoch: how many, the sum of their digests, in two halves that do not
-- overflow, and between which sequences they are. What a range lacks is held against this.
-- Read: with the ledger of a device, when its rows are verified.
CREATE TABLE dropped_losers (
    device_id   TEXT NOT NULL,
    epoch       INT8 NOT NULL,
    losers      INT8 NOT NULL,
    digest_low  INT8 NOT NULL,
    digest_high INT8 NOT NULL,
    first_seq   INT8 NOT NULL,
    last_seq    INT8 NOT NULL,
    PRIMARY KEY (device_id, epoch)
);

-- Devices whose clock was off when they last reported, by ten seconds at least; a device whose clock is right has no row.
-- Read: by each round of alerts.
CREATE TABLE skewed_clocks (
    device_id      TEXT NOT NULL,
    skew_ms        INT8 NOT NULL,
    device_time_ms INT8 NOT NULL,
    reported_at    TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (device_id)
);

-- Read: by each round of alerts. Holds devices that said good-bye, or whose will was told, and nothing else.
CREATE INDEX devices_offline ON devices (device_id) WHERE NOT online AND retired_at IS NULL;

-- Read: a page of the alerts of one device; a page of those that are open.
CREATE INDEX alerts_of_device ON alerts (device_id, opened_at DESC, id DESC);

CREATE INDEX alerts_open_latest ON alerts (opened_at DESC, id DESC) WHERE resolved_at IS NULL;

-- Read: a page of the dead letters of one device.
CREATE INDEX dead_letters_of_device ON dead_letters (device_id, received_at, payload_digest);
