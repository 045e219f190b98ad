//! The statements that write, valid on CockroachDB and PostgreSQL. Queries stand beside the code
//! that reads their rows.
//!
//! The hot path is one statement outside an explicit transaction, as CockroachDB's makers advise:
//!
//! ```text
//! head    UPDATE sync_status … WHERE ledger_version = the one that was built on   (compare and swap)
//! ranges  INSERT ledger      … only when every head moved
//! rows    INSERT telemetry_data … only when every head moved
//! ```
//!
//! When another bridge has moved one of the heads, nothing is written and no row is counted: the
//! caller reads the ledger again and plans anew. Rows are inserted plainly, which is half again
//! as fast as `ON CONFLICT`: nearly every reading is the first of its key. When one is not, the
//! database says so (23505) and nothing is written; `write` knows what follows.

use std::sync::LazyLock;

macro_rules! heads {
    () => {
        "UPDATE sync_status SET \
             ledger_version = sync_status.ledger_version + 1, \
             marked_version = sync_status.marked_version + 1, \
             last_seen = h.last_seen, \
             merge_due = sync_status.merge_due OR h.merge_due \
         FROM unnest($1::TEXT[], $2::INT8[], $3::INT8[], $4::TIMESTAMPTZ[], $5::BOOL[]) \
             AS h (device_id, epoch, ledger_version, last_seen, merge_due) \
         WHERE sync_status.device_id = h.device_id AND sync_status.epoch = h.epoch \
             AND sync_status.ledger_version = h.ledger_version"
    };
}

macro_rules! ledger_columns {
    () => {
        "(device_id, epoch, first_seq, kind, last_seq, digest, hlc_max, observed_min, \
         observed_max, reason, recorded_at, discarded_by)"
    };
}

macro_rules! select_ranges {
    () => {
        "SELECT * FROM unnest($7::TEXT[], $8::INT8[], $9::INT8[], $10::TEXT[], $11::INT8[], \
         $12::INT8[], $13::INT8[], $14::TIMESTAMPTZ[], $15::TIMESTAMPTZ[], $16::TEXT[], \
         $17::TIMESTAMPTZ[], $18::TEXT[]) AS l"
    };
}

macro_rules! ledger_grows {
    () => {
        "ON CONFLICT (device_id, epoch, first_seq, kind) DO UPDATE SET \
             last_seq = excluded.last_seq, digest = excluded.digest, \
             hlc_max = excluded.hlc_max, observed_min = excluded.observed_min, \
             observed_max = excluded.observed_max, reason = excluded.reason, \
             recorded_at = excluded.recorded_at, discarded_by = excluded.discarded_by"
    };
}

macro_rules! row_columns {
    () => {
        "(device_id, sensor, observed_at, value_f64, value_i64, value_bool, value_text, quality, \
         hlc, epoch, seq, received_at)"
    };
}

/// Heads, ledger and new rows in one. Arguments: five arrays of heads, their number, twelve arrays
/// of ledger rows, then an array for each column of [`row_columns`] that `shape` has. Affects no row
/// when a head had moved.
pub(super) fn write(shape: Shape) -> &'static str {
    static STATEMENTS: LazyLock<Vec<String>> = LazyLock::new(|| {
        (0..Shape::ALL)
            .map(|bits| write_text(Shape(bits)))
            .collect()
    });
    &STATEMENTS[usize::from(shape.0)]
}

/// Which columns some rows need. An array of NULL is not sent, and a constant not as an array:
/// measured, a fifth of the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Shape(u8);

impl Shape {
    pub(super) const F64: Self = Self(1);
    pub(super) const I64: Self = Self(2);
    pub(super) const BOOL: Self = Self(4);
    pub(super) const TEXT: Self = Self(8);
    /// Some row is not good.
    pub(super) const QUALITY: Self = Self(16);
    const ALL: u8 = 32;
    /// Every column.
    pub(super) const WHOLE: Self = Self(Self::ALL - 1);

    /// What both need.
    pub(super) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

fn write_text(shape: Shape) -> String {
    // Name, type of the array, and what stands in when there is none.
    let columns = [
        ("device_id", "TEXT", None),
        ("sensor", "TEXT", None),
        ("observed_at", "TIMESTAMPTZ", None),
        ("value_f64", "FLOAT8", Some((Shape::F64, "NULL::FLOAT8"))),
        ("value_i64", "INT8", Some((Shape::I64, "NULL::INT8"))),
        ("value_bool", "BOOL", Some((Shape::BOOL, "NULL::BOOL"))),
        ("value_text", "TEXT", Some((Shape::TEXT, "NULL::TEXT"))),
        ("quality", "INT2", Some((Shape::QUALITY, "0::INT2"))),
        ("hlc", "INT8", None),
        ("epoch", "INT8", None),
        ("seq", "INT8", None),
        ("received_at", "TIMESTAMPTZ", None),
    ];
    let (mut select, mut arrays, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for (name, kind, absent) in columns {
        match absent {
            Some((needs, constant)) if !shape.has(needs) => select.push(constant.to_owned()),
            _ => {
                select.push(format!("t.{name}"));
                arrays.push(format!("${}::{kind}[]", ROWS_FROM + arrays.len()));
                names.push(name);
            }
        }
    }
    format!(
        concat!(
            "WITH head AS (",
            heads!(),
            " RETURNING 1), ranges AS (INSERT INTO ledger ",
            ledger_columns!(),
            " ",
            select_ranges!(),
            " WHERE (SELECT count(*) FROM head) = $6::INT8 ",
            ledger_grows!(),
            " RETURNING 1) INSERT INTO telemetry_data ",
            row_columns!(),
            " SELECT {} FROM unnest({}) AS t ({}) \
             WHERE (SELECT count(*) FROM head) = $6::INT8"
        ),
        select.join(", "),
        arrays.join(", "),
        names.join(", ")
    )
}

/// The number of the first argument that is about rows.
const ROWS_FROM: usize = 19;

/// Heads and ledger only. Arguments as the first eighteen of [`write()`].
pub(super) const WRITE_LEDGER: &str = concat!(
    "WITH head AS (",
    heads!(),
    " RETURNING 1) INSERT INTO ledger ",
    ledger_columns!(),
    " ",
    select_ranges!(),
    " WHERE (SELECT count(*) FROM head) = $6::INT8 ",
    ledger_grows!()
);

/// Ledger rows.
pub(super) const PUT_RANGES: &str = concat!(
    "INSERT INTO ledger ",
    ledger_columns!(),
    " SELECT * FROM unnest($1::TEXT[], $2::INT8[], $3::INT8[], $4::TEXT[], $5::INT8[], \
     $6::INT8[], $7::INT8[], $8::TIMESTAMPTZ[], $9::TIMESTAMPTZ[], $10::TEXT[], \
     $11::TIMESTAMPTZ[], $12::TEXT[]) AS l ",
    ledger_grows!()
);

/// What is stored under some keys. The last arguments are the first and the last of their times: no other partitions are opened.
pub(super) const STORED: &str = "SELECT k.place, t.observed_at, t.value_f64, t.value_i64, \
     t.value_bool, t.value_text, t.quality, t.hlc, t.epoch, t.seq, t.received_at \
     FROM unnest($1::TEXT[], $2::TEXT[], $3::TIMESTAMPTZ[], $4::INT8[]) \
         AS k (device_id, sensor, observed_at, place) \
     JOIN telemetry_data AS t ON t.device_id = k.device_id AND t.sensor = k.sensor \
         AND t.observed_at = k.observed_at WHERE t.observed_at BETWEEN $5 AND $6";

/// What lost under some keys.
pub(super) const LOST: &str = "SELECT k.place, t.observed_at, t.value_f64, t.value_i64, \
     t.value_bool, t.value_text, t.quality, t.hlc, t.epoch, t.seq, t.received_at \
     FROM unnest($1::TEXT[], $2::TEXT[], $3::TIMESTAMPTZ[], $4::INT8[]) \
         AS k (device_id, sensor, observed_at, place) \
     JOIN conflicts AS t ON t.device_id = k.device_id AND t.sensor = k.sensor \
         AND t.observed_at = k.observed_at WHERE t.observed_at BETWEEN $5 AND $6";

/// Rows that won, each in place of the version that was found. The last arguments are as for [`STORED`].
pub(super) const REPLACE_ROWS: &str = "UPDATE telemetry_data SET \
         value_f64 = w.value_f64, value_i64 = w.value_i64, value_bool = w.value_bool, \
         value_text = w.value_text, quality = w.quality, hlc = w.hlc, epoch = w.epoch, \
         seq = w.seq, received_at = w.received_at \
     FROM unnest($1::TEXT[], $2::TEXT[], $3::TIMESTAMPTZ[], $4::FLOAT8[], $5::INT8[], \
         $6::BOOL[], $7::TEXT[], $8::INT2[], $9::INT8[], $10::INT8[], $11::INT8[], \
         $12::TIMESTAMPTZ[], $13::INT8[], $14::INT8[], $15::INT8[]) \
         AS w (device_id, sensor, observed_at, value_f64, value_i64, value_bool, value_text, \
             quality, hlc, epoch, seq, received_at, found_hlc, found_epoch, found_seq) \
     WHERE telemetry_data.device_id = w.device_id AND telemetry_data.sensor = w.sensor \
         AND telemetry_data.observed_at = w.observed_at AND telemetry_data.hlc = w.found_hlc \
         AND telemetry_data.epoch = w.found_epoch AND telemetry_data.seq = w.found_seq \
         AND telemetry_data.observed_at BETWEEN $16 AND $17";

/// Versions that lost.
pub(super) const PUT_CONFLICTS: &str = "INSERT INTO conflicts (device_id, sensor, observed_at, \
     value_f64, value_i64, value_bool, value_text, quality, hlc, epoch, seq, received_at, \
     winner_hlc, winner_epoch, winner_seq, recorded_at, same_reading) \
     SELECT * FROM unnest($1::TEXT[], $2::TEXT[], $3::TIMESTAMPTZ[], $4::FLOAT8[], $5::INT8[], \
     $6::BOOL[], $7::TEXT[], $8::INT2[], $9::INT8[], $10::INT8[], $11::INT8[], \
     $12::TIMESTAMPTZ[], $13::INT8[], $14::INT8[], $15::INT8[], $16::TIMESTAMPTZ[], \
     $17::BOOL[]) AS c \
     ON CONFLICT (device_id, sensor, observed_at, hlc, epoch, seq) DO NOTHING";

/// How many versions of each device lost, in the commit in which they lose.
pub(super) const SUPERSEDE: &str = "UPDATE devices SET \
         superseded = coalesce(devices.superseded, 0) + s.lost \
     FROM unnest($1::TEXT[], $2::INT8[]) AS s (device_id, lost) \
     WHERE devices.device_id = s.device_id";

/// Buffer files that were never heard of, and their devices. One that is known is locked: whoever begins its rollups
/// sees this file, or is seen by who writes to it.
pub(super) const MEET: &str = "WITH met AS ( \
         INSERT INTO devices (device_id, first_seen, last_seen, online) \
         SELECT device_id, min(seen), max(seen), false \
         FROM unnest($1::TEXT[], $3::TIMESTAMPTZ[]) AS d (device_id, seen) \
         GROUP BY device_id ORDER BY device_id \
         ON CONFLICT (device_id) DO UPDATE SET last_seen = devices.last_seen RETURNING 1) \
     INSERT INTO sync_status (device_id, epoch, first_seen, last_seen, ledger_version, \
         merge_due, direct, marked_version) \
     SELECT device_id, epoch, seen, seen, 0, false, direct, 0 \
     FROM unnest($1::TEXT[], $2::INT8[], $3::TIMESTAMPTZ[], $4::BOOL[]) \
         AS s (device_id, epoch, seen, direct) \
     ON CONFLICT (device_id, epoch) DO NOTHING";

/// What the ledger knows of some buffer files from a sequence on: a row without a range when
/// nothing is recorded yet, no row for a file that was never heard of. And before which time its rows are marked.
pub(super) const KNOWN: &str = "SELECT w.place, s.ledger_version, l.kind, l.reason, l.first_seq, \
     l.last_seq, l.digest, l.hlc_max, l.observed_min, l.observed_max, l.recorded_at, \
     l.discarded_by, r.rolled_until IS NOT NULL, s.rolled_until \
     FROM unnest($1::TEXT[], $2::INT8[], $3::INT8[], $4::INT8[]) \
         AS w (device_id, epoch, floor_seq, place) \
     JOIN sync_status AS s ON s.device_id = w.device_id AND s.epoch = w.epoch \
     LEFT JOIN rollup_status AS r ON r.device_id = w.device_id \
     LEFT JOIN ledger AS l ON l.device_id = w.device_id AND l.epoch = w.epoch \
         AND l.last_seq >= w.floor_seq - 1 \
     ORDER BY w.place, l.first_seq";

/// The devices' own side of the ledger. A report is newer when the device had taken over more
/// readings, or holds fewer of them: what it offers again moves from its quarantine to what is
/// pending, and is held all the same. One that comes a minute later is newer whatever it says: its
/// file was restored from an older copy. What was accepted once was accepted nevertheless.
pub(super) const PUT_REPORTS: &str = "UPDATE sync_status SET \
         last_seen = greatest(sync_status.last_seen, r.reported_at), \
         reported_at = r.reported_at, device_time_ms = r.device_time_ms, \
         reported_accepted = greatest(sync_status.reported_accepted, r.accepted), \
         reported_committed = r.committed, \
         reported_pending = r.pending, reported_evicted = r.evicted, \
         reported_rejected = r.discarded, \
         reported_quarantined = r.quarantined, reported_discarded = r.discarded \
     FROM unnest($1::TEXT[], $2::INT8[], $3::TIMESTAMPTZ[], $4::INT8[], $5::INT8[], $6::INT8[], \
         $7::INT8[], $8::INT8[], $9::INT8[], $10::INT8[]) \
         AS r (device_id, epoch, reported_at, device_time_ms, accepted, committed, pending, \
             evicted, quarantined, discarded) \
     WHERE sync_status.device_id = r.device_id AND sync_status.epoch = r.epoch \
         AND (sync_status.reported_accepted IS NULL \
             OR sync_status.reported_accepted < r.accepted \
             OR (sync_status.reported_accepted = r.accepted \
                 AND sync_status.reported_pending::FLOAT8 \
                     + coalesce(sync_status.reported_quarantined, 0)::FLOAT8 \
                     >= r.pending::FLOAT8 + r.quarantined::FLOAT8) \
             OR sync_status.reported_at < r.reported_at - interval '1 minute')";

/// What devices said they hold of epochs that they do not name any more.
pub(super) const FORGET_ABSENT: &str = "UPDATE sync_status SET \
         reported_pending = 0, reported_quarantined = 0 \
     FROM unnest($1::TEXT[], $2::TIMESTAMPTZ[]) AS r (device_id, reported_at) \
     WHERE sync_status.device_id = r.device_id AND sync_status.reported_at <= r.reported_at \
         AND (sync_status.reported_pending > 0 OR sync_status.reported_quarantined > 0) \
         AND NOT EXISTS (SELECT 1 FROM unnest($3::TEXT[], $4::INT8[]) AS n (device_id, epoch) \
             WHERE n.device_id = sync_status.device_id AND n.epoch = sync_status.epoch)";

/// Before which time rows of devices are gone, where retention has removed any.
pub(super) const GONE_BEFORE: &str = "SELECT device_id, expired_before FROM devices \
     WHERE device_id = ANY($1) AND expired_before IS NOT NULL";

/// Which agents devices run.
pub(super) const AGENTS: &str = "SELECT device_id, agent_version FROM devices \
     WHERE device_id = ANY($1) AND agent_version IS NOT NULL";

/// Births and wills, one a device. What an earlier connection says late changes nothing. A will is no sign of life,
/// whenever it is told, and neither is a birth that is told again: the broker retains it, and tells it to bridges for
/// as long as it lives, whatever became of the device.
pub(super) const PUT_PRESENCE: &str = "INSERT INTO devices (device_id, first_seen, last_seen, \
         online, session, epoch, agent_version) \
     SELECT device_id, seen, seen, online, session, epoch, agent_version \
     FROM unnest($1::TEXT[], $2::TIMESTAMPTZ[], $3::BOOL[], $4::INT8[], $5::INT8[], $6::TEXT[]) \
         AS p (device_id, seen, online, session, epoch, agent_version) \
     ON CONFLICT (device_id) DO UPDATE SET \
         last_seen = CASE WHEN excluded.online \
                 AND (devices.session IS NULL OR excluded.session <> devices.session) \
             THEN greatest(devices.last_seen, excluded.last_seen) ELSE devices.last_seen END, \
         online = CASE WHEN excluded.session = devices.session_before \
             THEN devices.online ELSE excluded.online END, \
         session_before = CASE WHEN excluded.session = devices.session_before \
             OR excluded.session = devices.session \
             THEN devices.session_before ELSE devices.session END, \
         session = CASE WHEN excluded.session = devices.session_before \
             THEN devices.session ELSE excluded.session END, \
         epoch = CASE WHEN excluded.session = devices.session_before OR excluded.epoch IS NULL \
             THEN devices.epoch ELSE excluded.epoch END, \
         agent_version = CASE WHEN excluded.session = devices.session_before \
             OR excluded.agent_version IS NULL \
             THEN devices.agent_version ELSE excluded.agent_version END";

/// Which of some payloads are kept already, by their places.
pub(super) const KNOWN_LETTERS: &str = "SELECT k.place \
     FROM unnest($1::TEXT[], $2::INT8[], $3::INT8[]) AS k (device_id, payload_digest, place) \
     JOIN dead_letters AS d ON d.device_id = k.device_id AND d.payload_digest = k.payload_digest";

/// Payloads kept aside, each (device, digest) once.
pub(super) const PUT_DEAD_LETTERS: &str = "INSERT INTO dead_letters (device_id, payload_digest, \
         topic, payload, payload_bytes, reason, times, received_at) \
     SELECT * FROM unnest($1::TEXT[], $2::INT8[], $3::TEXT[], $4::BYTEA[], $5::INT8[], \
         $6::TEXT[], $7::INT8[], $8::TIMESTAMPTZ[]) AS d \
     ON CONFLICT (device_id, payload_digest) DO UPDATE SET \
         times = dead_letters.times + excluded.times, reason = excluded.reason, \
         received_at = greatest(dead_letters.received_at, excluded.received_at)";

/// Buffer files whose ledger has rows to merge and that nobody else is working on.
pub(super) const CLAIM_MERGES: &str = "SELECT device_id, epoch FROM sync_status \
     WHERE merge_due ORDER BY device_id, epoch LIMIT $1 FOR UPDATE SKIP LOCKED";

/// Ledger rows that were merged into others.
pub(super) const DROP_RANGES: &str = "DELETE FROM ledger \
     WHERE (device_id, epoch, first_seq, kind) IN ( \
         SELECT * FROM unnest($1::TEXT[], $2::INT8[], $3::INT8[], $4::TEXT[]) AS g)";

/// The heads of merged ledgers.
pub(super) const MERGED: &str = "UPDATE sync_status SET \
         ledger_version = sync_status.ledger_version + 1, \
         marked_version = sync_status.marked_version + 1, merge_due = false \
     FROM unnest($1::TEXT[], $2::INT8[]) AS m (device_id, epoch) \
     WHERE sync_status.device_id = m.device_id AND sync_status.epoch = m.epoch";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_has_an_argument_for_each_column_of_its_shape() {
        let all = write(Shape::WHOLE);
        assert!(all.contains("$30::TIMESTAMPTZ[]") && !all.contains("$31"));
        let numbers = write(Shape::F64);
        assert!(numbers.contains("$26::TIMESTAMPTZ[]") && !numbers.contains("$27"));
        assert!(numbers.contains("t.value_f64, NULL::INT8, NULL::BOOL, NULL::TEXT, 0::INT2"));
    }
}
