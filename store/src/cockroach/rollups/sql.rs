//! The statements of rollups. All run at READ COMMITTED on PostgreSQL: each sees what was committed before it began, and
//! what a later one rests on an earlier one has locked.

use super::super::history::number;

/// Devices that are looked at for the first time.
pub(super) const ENTER: &str = "INSERT INTO rollup_status (device_id) \
     SELECT d.device_id FROM unnest($1::TEXT[]) AS d (device_id) \
     ON CONFLICT (device_id) DO NOTHING";

/// Hours of which retention may take something before this is looked at again.
pub(super) const KEEP_FROM: &str = "UPDATE rollup_status SET rolled_from = $2 \
     WHERE device_id = ANY($1) AND (rolled_from IS NULL OR rolled_from < $2)";

/// Which of some devices have something to do. $2 is the hour up to which hours are over, $3 since when a file that was
/// heard of is active.
pub(super) const DUE: &str = "SELECT r.device_id FROM unnest($1::TEXT[]) AS d (device_id) \
     JOIN rollup_status AS r ON r.device_id = d.device_id \
     WHERE r.rolled_until IS NULL OR EXISTS ( \
         SELECT 1 FROM sync_status AS s WHERE s.device_id = r.device_id AND ( \
             s.marked_version IS NULL OR s.marked_version <> s.ledger_version \
             OR (s.last_seen >= $3 AND (s.rolled_until IS NULL OR s.rolled_until < $2)) \
             OR (s.last_seen < $3 AND s.rolled_until IS NOT NULL) \
             OR (s.last_seen >= r.rolled_until AND r.rolled_until < $2))) \
     ORDER BY r.device_id";

/// Whoever works on a device's rollups has its row here, and nobody waits for it.
pub(super) const CLAIM: &str = "SELECT rolled_from, rolled_until FROM rollup_status \
     WHERE device_id = $1 FOR UPDATE SKIP LOCKED";

/// Files of a device that a bridge wrote to which knows nothing of marks.
pub(super) const UNMARKED: &str = "SELECT count(*) FROM sync_status \
     WHERE device_id = $1 AND (marked_version IS NULL OR marked_version <> ledger_version)";

/// How far a device's rollups go.
pub(super) const ROLLED_UNTIL: &str =
    "UPDATE rollup_status SET rolled_until = $2 WHERE device_id = $1";

/// Of nothing that was rolled up is anything left: some rows at a time.
pub(super) const CLEAR_HOURS: &str = "DELETE FROM telemetry_hours \
     WHERE (device_id, sensor, start_at, quality) IN ( \
         SELECT device_id, sensor, start_at, quality FROM telemetry_hours \
         WHERE device_id = $1 LIMIT $2)";
pub(super) const CLEAR_MINUTES: &str = "DELETE FROM telemetry_minutes \
     WHERE (device_id, sensor, start_at, quality) IN ( \
         SELECT device_id, sensor, start_at, quality FROM telemetry_minutes \
         WHERE device_id = $1 LIMIT $2)";
/// In the order in which whoever writes locks them.
pub(super) const CLEAR_MARKS: &str = "DELETE FROM rollup_marks \
     WHERE (device_id, sensor, hour_at) IN ( \
         SELECT device_id, sensor, hour_at FROM rollup_marks WHERE device_id = $1 \
         ORDER BY device_id, sensor, hour_at LIMIT $2 FOR UPDATE)";

/// Nobody has written to a file of the device since, and whoever does reads first that it has rollups.
pub(super) const START_FILES: &str = "UPDATE sync_status SET \
         ledger_version = sync_status.ledger_version + 1, \
         marked_version = sync_status.ledger_version + 1, rolled_until = NULL \
     WHERE device_id = $1";

/// Changes nothing: who meets a file of this device waits, or has met it before.
pub(super) const LOCK_DEVICE: &str =
    "UPDATE devices SET last_seen = devices.last_seen WHERE device_id = $1";

/// Whoever writes to a file of the device marks what is before $2 from now on. Who was not heard of since $3 marks
/// everything, and is let alone until then.
pub(super) const MOVE_FILES: &str = "UPDATE sync_status SET \
         ledger_version = sync_status.ledger_version + 1, \
         marked_version = sync_status.marked_version + 1, \
         rolled_until = CASE WHEN sync_status.last_seen >= $3 THEN $2::TIMESTAMPTZ ELSE NULL END \
     WHERE device_id = $1 AND (rolled_until IS NOT NULL OR last_seen >= $3)";

/// The first reading of any sensor between two times: one seek for each.
pub(super) const FIRST_OF_ALL: &str = "SELECT min(t.observed_at) FROM unnest($2::TEXT[]) AS s (sensor) \
     CROSS JOIN LATERAL ( \
         SELECT r.observed_at FROM telemetry_data AS r \
         WHERE r.device_id = $1 AND r.sensor = s.sensor \
             AND r.observed_at >= $3 AND r.observed_at < $4 \
         ORDER BY r.observed_at LIMIT 1) AS t";

/// Marks the hours of which there are readings, in the order of their keys as they are given: one seek for each hour of each
/// sensor.
pub(super) const MARK_FILLED: &str = "INSERT INTO rollup_marks \
         (device_id, sensor, hour_at, marks, marked_at, touched_at) \
     SELECT $1::TEXT, h.sensor, h.hour_at, 1, now(), now() \
     FROM unnest($2::TEXT[], $3::TIMESTAMPTZ[], $4::TIMESTAMPTZ[]) AS h (sensor, hour_at, end_at) \
     CROSS JOIN LATERAL ( \
         SELECT 1 AS one FROM telemetry_data AS r \
         WHERE r.device_id = $1 AND r.sensor = h.sensor \
             AND r.observed_at >= h.hour_at AND r.observed_at < h.end_at LIMIT 1) AS t \
     ON CONFLICT (device_id, sensor, hour_at) DO UPDATE SET \
         marks = rollup_marks.marks + 1, touched_at = now()";

/// Marks hours of which readings are written in the same transaction.
pub(in super::super) const MARK: &str = "INSERT INTO rollup_marks \
         (device_id, sensor, hour_at, marks, marked_at, touched_at) \
     SELECT m.device_id, m.sensor, m.hour_at, 1, now(), now() \
     FROM unnest($1::TEXT[], $2::TEXT[], $3::TIMESTAMPTZ[]) AS m (device_id, sensor, hour_at) \
     ON CONFLICT (device_id, sensor, hour_at) DO UPDATE SET \
         marks = rollup_marks.marks + 1, touched_at = now()";

/// The next devices behind $1 that have marks, and whether one of these has rested: two seeks a device. Marks that have not
/// rested are passed over until one has.
pub(super) const WAITING: &str = "WITH RECURSIVE waiting AS ( \
         (SELECT m.device_id, 1::INT8 AS place FROM rollup_marks AS m WHERE m.device_id > $1 \
          ORDER BY m.device_id LIMIT 1) \
         UNION ALL \
         SELECT (SELECT m.device_id FROM rollup_marks AS m \
             WHERE m.device_id > w.device_id ORDER BY m.device_id LIMIT 1), w.place + 1 \
         FROM waiting AS w WHERE w.device_id IS NOT NULL AND w.place < $3) \
     SELECT w.device_id, ( \
         SELECT m.marks FROM rollup_marks AS m WHERE m.device_id = w.device_id \
             AND m.touched_at <= now() - $2::INT8 * interval '1 microsecond' \
         ORDER BY m.device_id, m.sensor, m.hour_at LIMIT 1) IS NOT NULL \
     FROM waiting AS w WHERE w.device_id IS NOT NULL ORDER BY w.place";

/// The time, and since when the oldest mark is there.
pub(super) const LAG: &str = "SELECT now(), marked_at FROM rollup_marks ORDER BY marked_at LIMIT 1";

/// Some marks of a device, and before which time its readings may be gone.
pub(super) const MARKS: &str = "SELECT m.sensor, m.hour_at, m.marks, d.expired_before \
     FROM rollup_marks AS m JOIN devices AS d ON d.device_id = m.device_id \
     WHERE m.device_id = $1 AND m.touched_at <= now() - $2::INT8 * interval '1 microsecond' \
     ORDER BY m.sensor, m.hour_at LIMIT $3";

/// The numbers of some hours, an hour a row: at most $6 of each. An hour's numbers as arrays are a third of what as many rows
/// cost.
pub(super) const NUMBERS: &str = concat!(
    "SELECT m.place, t.times, t.qualities, t.numbers \
     FROM unnest($2::TEXT[], $3::TIMESTAMPTZ[], $4::TIMESTAMPTZ[], $5::INT8[]) \
         AS m (sensor, hour_at, end_at, place) \
     CROSS JOIN LATERAL ( \
         SELECT array_agg(n.observed_at) AS times, array_agg(n.quality) AS qualities, \
             array_agg(n.number) AS numbers \
         FROM ( \
             SELECT r.observed_at, r.quality::INT8 AS quality, ",
    number!("r"),
    " AS number FROM telemetry_data AS r \
             WHERE r.device_id = $1 AND r.sensor = m.sensor AND r.observed_at >= m.hour_at \
                 AND r.observed_at < m.end_at AND r.value_text IS NULL \
             ORDER BY r.observed_at LIMIT $6) AS n) AS t"
);

/// What was computed of some hours before.
pub(super) const DROP_HOURS: &str = "DELETE FROM telemetry_hours AS h \
     USING unnest($2::TEXT[], $3::TIMESTAMPTZ[]) AS m (sensor, hour_at) \
     WHERE h.device_id = $1 AND h.sensor = m.sensor AND h.start_at = m.hour_at";
pub(super) const DROP_MINUTES: &str = "DELETE FROM telemetry_minutes AS h \
     USING unnest($2::TEXT[], $3::TIMESTAMPTZ[], $4::TIMESTAMPTZ[]) AS m (sensor, hour_at, end_at) \
     WHERE h.device_id = $1 AND h.sensor = m.sensor \
         AND h.start_at >= m.hour_at AND h.start_at < m.end_at";

/// What is computed of them now.
pub(super) const PUT_HOURS: &str = "INSERT INTO telemetry_hours (device_id, sensor, start_at, \
         quality, numbers, low, high, small_sum, big_sum, first_at, first_number, last_at, \
         last_number, has_minutes) \
     SELECT $1::TEXT, p.sensor, p.start_at, p.quality, p.numbers, p.low, p.high, p.small_sum, \
         p.big_sum, p.first_at, p.first_number, p.last_at, p.last_number, p.has_minutes \
     FROM unnest($2::TEXT[], $3::TIMESTAMPTZ[], $4::INT2[], $5::INT8[], $6::FLOAT8[], \
         $7::FLOAT8[], $8::FLOAT8[], $9::FLOAT8[], $10::TIMESTAMPTZ[], $11::FLOAT8[], \
         $12::TIMESTAMPTZ[], $13::FLOAT8[], $14::BOOL[]) \
         AS p (sensor, start_at, quality, numbers, low, high, small_sum, big_sum, first_at, \
             first_number, last_at, last_number, has_minutes)";
pub(super) const PUT_MINUTES: &str = "INSERT INTO telemetry_minutes (device_id, sensor, start_at, \
         quality, numbers, low, high, small_sum, big_sum, first_at, first_number, last_at, \
         last_number) \
     SELECT $1::TEXT, p.sensor, p.start_at, p.quality, p.numbers, p.low, p.high, p.small_sum, \
         p.big_sum, p.first_at, p.first_number, p.last_at, p.last_number \
     FROM unnest($2::TEXT[], $3::TIMESTAMPTZ[], $4::INT2[], $5::INT8[], $6::FLOAT8[], \
         $7::FLOAT8[], $8::FLOAT8[], $9::FLOAT8[], $10::TIMESTAMPTZ[], $11::FLOAT8[], \
         $12::TIMESTAMPTZ[], $13::FLOAT8[]) \
         AS p (sensor, start_at, quality, numbers, low, high, small_sum, big_sum, first_at, \
             first_number, last_at, last_number)";

/// Marks of hours that are computed now, as far as nobody has marked them again since.
pub(super) const UNMARK: &str = "DELETE FROM rollup_marks AS r \
     USING unnest($2::TEXT[], $3::TIMESTAMPTZ[], $4::INT8[]) AS m (sensor, hour_at, marks) \
     WHERE r.device_id = $1 AND r.sensor = m.sensor AND r.hour_at = m.hour_at \
         AND r.marks = m.marks";

/// Sensors of which there are rollups, in whichever order.
pub(super) const ROLLED_NAMES: &str = "WITH RECURSIVE names AS ( \
         (SELECT t.sensor FROM telemetry_hours AS t WHERE t.device_id = $1 \
          ORDER BY t.sensor LIMIT 1) \
         UNION ALL \
         SELECT (SELECT t.sensor FROM telemetry_hours AS t \
             WHERE t.device_id = $1 AND t.sensor > n.sensor ORDER BY t.sensor LIMIT 1) \
         FROM names AS n WHERE n.sensor IS NOT NULL) \
     SELECT sensor FROM names WHERE sensor IS NOT NULL";

/// Rollups of hours that are too old.
pub(super) const EXPIRE_HOURS: &str = "DELETE FROM telemetry_hours \
     WHERE (device_id, sensor, start_at, quality) IN ( \
         SELECT r.device_id, r.sensor, r.start_at, r.quality \
         FROM unnest($2::TEXT[]) AS s (sensor) CROSS JOIN LATERAL ( \
             SELECT h.device_id, h.sensor, h.start_at, h.quality FROM telemetry_hours AS h \
             WHERE h.device_id = $1 AND h.sensor = s.sensor AND h.start_at < $3 \
             ORDER BY h.start_at LIMIT $4) AS r)";
pub(super) const EXPIRE_MINUTES: &str = "DELETE FROM telemetry_minutes \
     WHERE (device_id, sensor, start_at, quality) IN ( \
         SELECT r.device_id, r.sensor, r.start_at, r.quality \
         FROM unnest($2::TEXT[]) AS s (sensor) CROSS JOIN LATERAL ( \
             SELECT h.device_id, h.sensor, h.start_at, h.quality FROM telemetry_minutes AS h \
             WHERE h.device_id = $1 AND h.sensor = s.sensor AND h.start_at < $3 \
             ORDER BY h.start_at LIMIT $4) AS r)";

/// Between which hours a device has rollups, unless a bridge has written to it that knows nothing of marks.
pub(in super::super) const ROLLED: &str = "SELECT r.rolled_from, r.rolled_until, d.expired_before \
     FROM rollup_status AS r JOIN devices AS d ON d.device_id = r.device_id \
     WHERE r.device_id = $1 AND r.rolled_until IS NOT NULL AND NOT EXISTS ( \
         SELECT 1 FROM sync_status AS s WHERE s.device_id = $1 \
             AND (s.marked_version IS NULL OR s.marked_version <> s.ledger_version))";

/// The marks of a sensor between two times.
pub(in super::super) const MARKED: &str = "SELECT hour_at FROM rollup_marks \
     WHERE device_id = $1 AND sensor = $2 AND hour_at >= $3 AND hour_at < $4 \
     ORDER BY hour_at LIMIT $5";

/// Hours that have minutes.
pub(in super::super) const HAVE_MINUTES: &str = "SELECT DISTINCT start_at FROM telemetry_hours \
     WHERE device_id = $1 AND sensor = $2 AND start_at >= $3 AND start_at < $4 AND has_minutes \
     ORDER BY start_at";

macro_rules! rolled {
    ($table:literal) => {
        concat!(
            "SELECT r.start_at, r.numbers, r.low, r.high, r.small_sum, r.big_sum, r.first_at, \
                 r.first_number, r.last_at, r.last_number \
             FROM unnest($3::TIMESTAMPTZ[], $4::TIMESTAMPTZ[]) AS p (from_at, to_at) \
             CROSS JOIN LATERAL (SELECT * FROM ",
            $table,
            " AS h WHERE h.device_id = $1 AND h.sensor = $2 AND h.start_at >= p.from_at \
                 AND h.start_at < p.to_at AND h.quality <= $5 ORDER BY h.start_at) AS r"
        )
    };
}

/// Rollups of a sensor, of some runs of hours.
pub(in super::super) const HOURS: &str = rolled!("telemetry_hours");
pub(in super::super) const MINUTES: &str = rolled!("telemetry_minutes");
