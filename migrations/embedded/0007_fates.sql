-- What becomes of readings beside being committed: quarantined, evicted, discarded; and of committed
-- ones: superseded, expired. As migrations/cockroach/0008 to 0010; SQLite changes a constraint by
-- making the table anew. Who was refused before there was a quarantine has freed its reading.

CREATE TABLE ledger_of_fates (
    device_id    TEXT NOT NULL,
    epoch        INTEGER NOT NULL,
    first_seq    INTEGER NOT NULL,
    kind         TEXT NOT NULL CHECK (kind IN ('committed', 'quarantined', 'evicted', 'discarded')),
    last_seq     INTEGER NOT NULL,
    digest       INTEGER NOT NULL,
    hlc_max      INTEGER,
    observed_min INTEGER,
    observed_max INTEGER,
    reason       TEXT,
    recorded_at  INTEGER NOT NULL,
    discarded_by TEXT,
    PRIMARY KEY (device_id, epoch, first_seq, kind),
    CHECK (first_seq >= 1 AND last_seq >= first_seq)
) STRICT, WITHOUT ROWID;

INSERT INTO ledger_of_fates (device_id, epoch, first_seq, kind, last_seq, digest, hlc_max,
        observed_min, observed_max, reason, recorded_at)
    SELECT device_id, epoch, first_seq, CASE kind WHEN 'rejected' THEN 'discarded' ELSE kind END,
        last_seq, digest, hlc_max, observed_min, observed_max, reason, recorded_at
    FROM ledger;

DROP TABLE ledger;
ALTER TABLE ledger_of_fates RENAME TO ledger;

ALTER TABLE sync_status ADD COLUMN reported_quarantined INTEGER;
ALTER TABLE sync_status ADD COLUMN reported_discarded INTEGER;
ALTER TABLE sync_status ADD COLUMN direct INTEGER;
UPDATE sync_status SET reported_quarantined = 0, reported_discarded = reported_rejected
    WHERE reported_at IS NOT NULL;

-- A device from before has no count of what retention removed.
ALTER TABLE devices ADD COLUMN superseded INTEGER DEFAULT 0;
ALTER TABLE devices ADD COLUMN expired INTEGER DEFAULT 0;
ALTER TABLE devices ADD COLUMN expired_before INTEGER;
UPDATE devices SET expired = NULL,
    superseded = (SELECT count(*) FROM conflicts AS c WHERE c.device_id = devices.device_id);

ALTER TABLE conflicts ADD COLUMN same_reading INTEGER;
