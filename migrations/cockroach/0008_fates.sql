-- What becomes of readings beside being committed: quarantined, evicted, discarded; and of committed
-- ones: superseded, expired. Columns first: CockroachDB cannot write a column in the transaction that
-- adds it, and the next step fills them. Tables in the order in which bridges lock them.

-- Its readings come over HTTP: whoever sends them holds what is refused, and chooses the sequences.
ALTER TABLE sync_status ADD COLUMN direct BOOL;
-- NULL until a bridge that knows the quarantine has heard a report.
ALTER TABLE sync_status ADD COLUMN reported_quarantined INT8;
ALTER TABLE sync_status ADD COLUMN reported_discarded INT8;

-- Of ranges of the kind 'rejected': who gave them up, 'person', 'quarantine_budget' or 'older_agent',
-- which freed what had been refused. NULL: they are in quarantine. The kinds themselves stay, so that a
-- bridge of 0.1 that runs on beside newer ones reads and writes the ledger as before.
ALTER TABLE ledger ADD COLUMN discarded_by TEXT;

-- The version that lost was the same reading under another sequence: no conflict.
ALTER TABLE conflicts ADD COLUMN same_reading BOOL;

-- Committed readings of the device whose key another version holds, written by the commit in which
-- they lose; and those that retention removed, written when it does. NULL: not counted from the
-- beginning.
ALTER TABLE devices ADD COLUMN superseded INT8;
ALTER TABLE devices ADD COLUMN expired INT8;
-- What was observed before is gone.
ALTER TABLE devices ADD COLUMN expired_before TIMESTAMPTZ;
