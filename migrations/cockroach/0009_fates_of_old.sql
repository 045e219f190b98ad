-- What the ledger said before there was a quarantine: who was refused has freed its reading.

UPDATE ledger SET kind = 'discarded' WHERE kind = 'rejected';

UPDATE sync_status SET reported_quarantined = 0, reported_discarded = reported_rejected
    WHERE reported_at IS NOT NULL;

UPDATE devices SET superseded = c.lost
    FROM (SELECT device_id, count(*) AS lost FROM conflicts GROUP BY device_id) AS c
    WHERE devices.device_id = c.device_id;
