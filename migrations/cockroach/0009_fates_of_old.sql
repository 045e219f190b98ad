-- What the ledger said before there was a quarantine: who was refused has freed its reading. Nothing
-- here changes a row that running bridges write with each batch.

UPDATE ledger SET discarded_by = 'older_agent' WHERE kind = 'rejected' AND discarded_by IS NULL;

UPDATE devices SET superseded = c.lost
    FROM (SELECT device_id, count(*) AS lost FROM conflicts GROUP BY device_id) AS c
    WHERE devices.device_id = c.device_id;
