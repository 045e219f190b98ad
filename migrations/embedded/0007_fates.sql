-- What becomes of readings beside being committed: quarantined, evicted, discarded; and of committed
-- ones: superseded, expired. As migrations/cockroach/0008 to 0010.

-- Of ranges of the kind 'rejected': who gave them up. NULL: they are in quarantine. Who was refused
-- before there was a quarantine has freed its reading.
ALTER TABLE ledger ADD COLUMN discarded_by TEXT;
UPDATE ledger SET discarded_by = 'older_agent' WHERE kind = 'rejected';

ALTER TABLE sync_status ADD COLUMN reported_quarantined INTEGER;
ALTER TABLE sync_status ADD COLUMN reported_discarded INTEGER;
ALTER TABLE sync_status ADD COLUMN direct INTEGER;

-- Of a device from before, what retention removed is not counted, for ever.
ALTER TABLE devices ADD COLUMN superseded INTEGER DEFAULT 0;
ALTER TABLE devices ADD COLUMN expired INTEGER DEFAULT 0;
ALTER TABLE devices ADD COLUMN expired_before INTEGER;
UPDATE devices SET expired = NULL,
    superseded = (SELECT count(*) FROM conflicts AS c WHERE c.device_id = devices.device_id);

ALTER TABLE conflicts ADD COLUMN same_reading INTEGER;
