-- 'rejected' is what a bridge of 0.1 still writes that runs on beside newer ones; it reads as
-- quarantined.
ALTER TABLE ledger ADD CONSTRAINT ledger_kinds
    CHECK (kind IN ('committed', 'quarantined', 'evicted', 'discarded', 'rejected'));

ALTER TABLE devices ALTER COLUMN superseded SET DEFAULT 0;
ALTER TABLE devices ALTER COLUMN expired SET DEFAULT 0;
