-- What becomes of readings beside being committed: quarantined, evicted, discarded; and of committed
-- ones: superseded, expired. Columns first: CockroachDB cannot write a column in the transaction that
-- adds it. The next step fills them, and the one behind it says which kinds there are.

-- Of discarded ranges: who gave them up, 'person' or 'quarantine_budget'. NULL where an agent of
-- 0.1 freed what had been refused.
ALTER TABLE ledger ADD COLUMN discarded_by TEXT;

-- The kinds change. The constraint's name is PostgreSQL's on the one, and CockroachDB's on the other.
ALTER TABLE ledger DROP CONSTRAINT IF EXISTS ledger_kind_check;
ALTER TABLE ledger DROP CONSTRAINT IF EXISTS check_kind;

ALTER TABLE sync_status ADD COLUMN reported_quarantined INT8;
ALTER TABLE sync_status ADD COLUMN reported_discarded INT8;

-- Its readings come over HTTP: whoever sends them holds what is refused, and chooses the sequences.
ALTER TABLE sync_status ADD COLUMN direct BOOL;

-- Committed readings of the device whose key another version holds, written by the commit in which
-- they lose; and those that retention removed, written when it does. NULL: not counted from the
-- beginning.
ALTER TABLE devices ADD COLUMN superseded INT8;
ALTER TABLE devices ADD COLUMN expired INT8;
-- What was observed before is gone.
ALTER TABLE devices ADD COLUMN expired_before TIMESTAMPTZ;

-- The version that lost was the same reading under another sequence: no conflict.
ALTER TABLE conflicts ADD COLUMN same_reading BOOL;
