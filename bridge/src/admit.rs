//! What arrives → what the database may have: every bad input gets a decided fate here, before
//! anything is queued. Promise P6.
//!
//! ```text
//! payload that cannot be read, or with sequences that no acknowledgement can name
//!                                      → dead letter, and the device is sent its digest
//! NaN, infinity                        → refused:  not_finite
//! text over 1 KiB or with NUL          → refused:  bad_text
//! observed too long ago                → refused:  too_old
//! observed or stamped too far ahead    → refused:  too_new
//! clock that no store can hold         → refused:  out_of_range
//! the rest of the same batch           → admitted
//! (what is refused stays on its device, in quarantine)
//!
//! event, birth or will that cannot be read, or that no store can hold → dead letter
//! ```
//!
//! Pure: the time is an argument.

use std::time::Duration;

use schema::codec::{self, DecodeError};
use schema::envelope::{self, EnvelopeError};
use schema::limits::{
    COMMAND_BODY_BYTES_MAX, CONFIG_KEYS_MAX, CONFIG_VALUE_BYTES_MAX, KEY_BYTES_MAX,
    REPORT_EPOCHS_MAX, SENSORS_MESSAGE_MAX, SQL_INTEGER_MAX,
};
use schema::message::{
    CommandProgress, ConfigEntry, Event, FailedKey, LedgerReport, RejectReason, Rejection, Report,
    ReportedConfig, SensorReport, Status,
};
use schema::reading::ValueError;
use schema::sensor::DeclarationError;
use schema::time::ReceivedAt;
use schema::{Batch, DeviceId, Row, SeqRange};

use store::{Delivery, Origin};

/// How far a reading's times may be from the bridge's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The oldest reading that is taken. Ten years: a device may come back from a long time
    /// offline, but not from 1970, which is what a clock that was never set says.
    pub past_max: Duration,
    /// The furthest ahead. One day: a wrong time zone is forgiven, a wrong year is not; and a
    /// version from the future would win over every right one until then.
    pub future_max: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        const DAY: u64 = 24 * 60 * 60;
        Self {
            past_max: Duration::from_secs(3650 * DAY),
            future_max: Duration::from_secs(DAY),
        }
    }
}

/// Why a payload as a whole is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// It is no batch that this build reads.
    #[error(transparent)]
    Undecodable(#[from] DecodeError),
    /// A sequence that no acknowledgement can name.
    #[error("sequence {0} is out of range, allowed are 1 to 2^63 - 1")]
    Sequence(u64),
}

/// Why an event, a birth or a will is refused: one that no store can hold would be tried again for
/// ever, in everybody's way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SideError {
    /// It is no message that this build reads.
    #[error(transparent)]
    Undecodable(#[from] EnvelopeError),
    /// What a sensor is said to be makes no sense.
    #[error(transparent)]
    Declaration(#[from] DeclarationError),
    /// A text that is too long, or holds NUL.
    #[error("{0} is too long, or holds NUL")]
    Text(&'static str),
    /// A number or a count out of bounds.
    #[error("{0} out of bounds")]
    Number(&'static str),
}

/// Reads one payload of `up/status`.
///
/// # Errors
/// [`SideError`]: a dead letter.
pub fn admit_status(payload: &[u8]) -> Result<Status, SideError> {
    let status = envelope::decode_kind(payload)?;
    if let Status::Online { agent_version, .. } = &status {
        check_text("the agent's version", agent_version, KEY_BYTES_MAX)?;
    }
    Ok(status)
}

/// Reads one payload of `up/event`.
///
/// # Errors
/// [`SideError`]: a dead letter.
pub fn admit_event(payload: &[u8]) -> Result<Event, SideError> {
    let mut event = envelope::decode_kind(payload)?;
    match &mut event {
        // An agent reports no more epochs at once, the current one first. What is beyond is not heard: a report is a sign
        // of life, and thousands of epochs are work for everybody's bridge. Numbers and ranges are cut to what the ledger
        // can hold.
        Event::Report(Report { epochs, .. }) => epochs.truncate(REPORT_EPOCHS_MAX),
        Event::Ledger(LedgerReport { epochs, .. }) => epochs.truncate(REPORT_EPOCHS_MAX),
        Event::TimeRequest(_) => {}
        Event::Command(CommandProgress {
            percent, output, ..
        }) => {
            check_text("a command's output", output, COMMAND_BODY_BYTES_MAX)?;
            if *percent > 100 {
                return Err(SideError::Number("a command's percentage is"));
            }
        }
        Event::Config(ReportedConfig { entries, failed }) => {
            if entries.len().max(failed.len()) > CONFIG_KEYS_MAX {
                return Err(SideError::Number("the count of keys is"));
            }
            for ConfigEntry { key, value, hlc } in entries {
                check_text("a key", key, KEY_BYTES_MAX)?;
                check_text("a setting", value, CONFIG_VALUE_BYTES_MAX)?;
                if hlc.bits() > SQL_INTEGER_MAX {
                    return Err(SideError::Number("a setting's clock is"));
                }
            }
            for FailedKey { reason, .. } in failed {
                check_text("a reason", reason, CONFIG_VALUE_BYTES_MAX)?;
            }
        }
        Event::Sensors(SensorReport { sensors }) => {
            if sensors.len() > SENSORS_MESSAGE_MAX {
                return Err(SideError::Number("the count of sensors is"));
            }
            for declared in sensors {
                declared.declaration.validate()?;
                if declared.version.bits() > SQL_INTEGER_MAX {
                    return Err(SideError::Number("a declaration's clock is"));
                }
            }
        }
    }
    Ok(event)
}

impl SideError {
    /// Whether a newer peer said something that this build does not know: no damage, and nothing
    /// to keep.
    #[must_use]
    pub const fn is_newer(&self) -> bool {
        matches!(self, Self::Undecodable(EnvelopeError::UnknownKind(_)))
    }
}

fn check_text(what: &'static str, text: &str, bytes_max: usize) -> Result<(), SideError> {
    if text.len() > bytes_max || text.contains('\0') {
        return Err(SideError::Text(what));
    }
    Ok(())
}

/// Reads one telemetry payload.
///
/// # Errors
/// [`AdmitError`] when nothing of it can be told apart: a dead letter.
pub fn admit(
    device: DeviceId,
    payload: &[u8],
    received_at: ReceivedAt,
    bounds: &Bounds,
) -> Result<Delivery, AdmitError> {
    admit_batch(device, codec::decode(payload)?, received_at, bounds)
}

/// Looks at the readings of one batch, wherever it came from.
///
/// # Errors
/// [`AdmitError::Sequence`].
pub fn admit_batch(
    device: DeviceId,
    mut batch: Batch,
    received_at: ReceivedAt,
    bounds: &Bounds,
) -> Result<Delivery, AdmitError> {
    let out_of_range = |row: &&Row| !(1..=SQL_INTEGER_MAX).contains(&row.seq);
    if let Some(row) = batch.rows.iter().find(out_of_range) {
        return Err(AdmitError::Sequence(row.seq));
    }
    let limits = Limits::at(received_at, bounds);
    let mut rejected: Vec<Rejection> = Vec::new();
    batch.rows.retain(|row| match limits.judge(row) {
        Ok(()) => true,
        Err(reason) => {
            reject(&mut rejected, row.seq, reason);
            false
        }
    });
    Ok(Delivery {
        device,
        batch,
        rejected,
        received_at,
        origin: Origin::Device,
    })
}

/// Joins a rejected sequence with the one before it where reason and order allow.
fn reject(rejected: &mut Vec<Rejection>, seq: u64, reason: RejectReason) {
    if let Some(last) = rejected.last_mut()
        && last.reason == reason
        && last.range.last() + 1 == seq
        && let Some(longer) = SeqRange::new(last.range.first(), seq)
    {
        last.range = longer;
        return;
    }
    rejected.extend(SeqRange::one(seq).map(|range| Rejection { range, reason }));
}

/// The bounds at one moment.
struct Limits {
    observed_from: i64,
    observed_to: i64,
    stamped_to_ms: u64,
}

impl Limits {
    fn at(received_at: ReceivedAt, bounds: &Bounds) -> Self {
        let now = received_at.micros();
        let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        let observed_to = now.saturating_add(micros(bounds.future_max));
        Self {
            observed_from: now.saturating_sub(micros(bounds.past_max)),
            observed_to,
            stamped_to_ms: observed_to.max(0).unsigned_abs() / 1000,
        }
    }

    fn judge(&self, row: &Row) -> Result<(), RejectReason> {
        if row.hlc.bits() > SQL_INTEGER_MAX {
            return Err(RejectReason::OutOfRange);
        }
        let observed = row.observed_at.micros();
        if observed < self.observed_from {
            return Err(RejectReason::TooOld);
        }
        if observed > self.observed_to || row.hlc.millis() > self.stamped_to_ms {
            return Err(RejectReason::TooNew);
        }
        row.value.validate().map_err(|error| match error {
            ValueError::NotFinite => RejectReason::NotFinite,
            ValueError::TextTooLong { .. } | ValueError::TextHoldsNul => RejectReason::BadText,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schema::codec::Encoder;
    use schema::message::{CommandId, CommandState};
    use schema::{Epoch, Hlc, ObservedAt, Quality, Value};

    const NOW: i64 = 1_800_000_000_000_000;

    fn bounds() -> Bounds {
        Bounds {
            past_max: Duration::from_secs(100),
            future_max: Duration::from_secs(10),
        }
    }

    fn row(seq: u64) -> Row {
        Row {
            sensor: 0,
            observed_at: ObservedAt::from_micros(NOW),
            hlc: Hlc::new(NOW as u64 / 1000, 0),
            seq,
            quality: Quality::Good,
            value: Value::F64(1.5),
        }
    }

    fn admitted(rows: Vec<Row>) -> Result<Delivery, AdmitError> {
        let batch = Batch {
            epoch: Epoch::from_random(7),
            sensors: vec!["s".parse().unwrap()],
            rows,
        };
        let mut payload = Vec::new();
        Encoder::default().encode(&batch, &mut payload).unwrap();
        let received_at = ReceivedAt::from_micros(NOW);
        admit("d".parse().unwrap(), &payload, received_at, &bounds())
    }

    /// The fate of the middle one of three rows; its neighbours must be admitted.
    fn fate(change: impl FnOnce(&mut Row)) -> Option<RejectReason> {
        let mut rows = vec![row(1), row(2), row(3)];
        change(&mut rows[1]);
        let delivery = admitted(rows).unwrap();
        let kept: Vec<u64> = delivery.batch.rows.iter().map(|row| row.seq).collect();
        match delivery.rejected[..] {
            [] => assert_eq!(kept, [1, 2, 3]),
            [_] => assert_eq!(kept, [1, 3]),
            _ => panic!("{:?}", delivery.rejected),
        }
        delivery.rejected.first().map(|rejection| {
            assert_eq!(rejection.range, SeqRange::one(2).unwrap());
            rejection.reason
        })
    }

    #[test]
    fn times_are_bounded_on_both_sides() {
        let at = |micros: i64| fate(|row| row.observed_at = ObservedAt::from_micros(micros));
        assert_eq!(at(NOW - 100_000_000 + 1), None);
        assert_eq!(at(NOW - 100_000_000), None);
        assert_eq!(at(NOW - 100_000_000 - 1), Some(RejectReason::TooOld));
        assert_eq!(at(NOW + 10_000_000 - 1), None);
        assert_eq!(at(NOW + 10_000_000), None);
        assert_eq!(at(NOW + 10_000_000 + 1), Some(RejectReason::TooNew));
        assert_eq!(at(i64::MAX), Some(RejectReason::TooNew));
        assert_eq!(at(i64::MIN), Some(RejectReason::TooOld));
    }

    #[test]
    fn a_stamp_from_the_future_is_rejected() {
        let at = |ms: u64| fate(|row| row.hlc = Hlc::new(ms, 0));
        let now = NOW as u64 / 1000;
        assert_eq!(at(now + 9_999), None);
        assert_eq!(at(now + 10_000), None);
        assert_eq!(at(now + 10_001), Some(RejectReason::TooNew));
        assert_eq!(
            fate(|row| row.hlc = Hlc::from_bits(u64::MAX)),
            Some(RejectReason::OutOfRange)
        );
    }

    #[test]
    fn values_that_no_store_holds_are_rejected() {
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(
                fate(|row| row.value = Value::F64(number)),
                Some(RejectReason::NotFinite)
            );
        }
        assert_eq!(
            fate(|row| row.value = Value::Text("a\0".into())),
            Some(RejectReason::BadText)
        );
        assert_eq!(fate(|row| row.value = Value::Text("a".into())), None);
    }

    #[test]
    fn neighbours_with_one_reason_share_a_range() {
        let mut rows: Vec<Row> = (1..=6).map(row).collect();
        for bad in [1, 2, 4] {
            rows[bad].value = Value::F64(f64::NAN);
        }
        let delivery = admitted(rows).unwrap();
        let ranges: Vec<String> = delivery
            .rejected
            .iter()
            .map(|rejection| rejection.range.to_string())
            .collect();
        assert_eq!(ranges, ["2-3", "5"]);
    }

    #[test]
    fn sequences_that_nobody_can_name_refuse_the_payload() {
        assert!(admitted(vec![row(SQL_INTEGER_MAX)]).is_ok());
        for seq in [0, SQL_INTEGER_MAX + 1] {
            assert_eq!(
                admitted(vec![row(1), row(seq)]),
                Err(AdmitError::Sequence(seq))
            );
        }
    }

    #[test]
    fn births_and_events_have_their_bounds() {
        let fits = |event: &Event| admit_event(&envelope::encode(event).unwrap()).is_ok();
        let version = |text: String| {
            let birth = Status::Online {
                session: 1,
                epoch: Epoch::from_random(1),
                agent_version: text,
            };
            admit_status(&envelope::encode(&birth).unwrap()).is_ok()
        };
        assert!(version("v".repeat(KEY_BYTES_MAX)));
        assert!(!version("v".repeat(KEY_BYTES_MAX + 1)));
        assert!(!version("1\0".to_owned()));

        let progress = |percent, output: String| {
            fits(&Event::Command(CommandProgress {
                id: CommandId::from_bits(1),
                state: CommandState::Running,
                percent,
                output,
            }))
        };
        assert!(progress(100, "x".repeat(COMMAND_BODY_BYTES_MAX)));
        assert!(!progress(101, String::new()));
        assert!(!progress(0, "x".repeat(COMMAND_BODY_BYTES_MAX + 1)));
        assert!(!progress(0, "\0".to_owned()));

        let config = |count, key: &str, value: &str, clock| {
            let entry = ConfigEntry {
                key: key.to_owned(),
                value: value.to_owned(),
                hlc: Hlc::from_bits(clock),
            };
            fits(&Event::Config(ReportedConfig {
                entries: vec![entry; count],
                failed: Vec::new(),
            }))
        };
        let (key, value) = (
            "k".repeat(KEY_BYTES_MAX),
            "v".repeat(CONFIG_VALUE_BYTES_MAX),
        );
        assert!(config(1, &key, &value, SQL_INTEGER_MAX));
        assert!(config(CONFIG_KEYS_MAX, "k", "1", 1));
        assert!(!config(CONFIG_KEYS_MAX + 1, "k", "1", 1));
        assert!(!config(1, &format!("{key}k"), "1", 1));
        assert!(!config(1, "k", &format!("{value}v"), 1));
        assert!(!config(1, "k\0", "1", 1));
        assert!(!config(1, "k", "1", SQL_INTEGER_MAX + 1));
        let reason = |bytes| {
            let failed = FailedKey {
                key: "k".to_owned(),
                reason: "r".repeat(bytes),
            };
            fits(&Event::Config(ReportedConfig {
                entries: Vec::new(),
                failed: vec![failed],
            }))
        };
        assert!(reason(CONFIG_VALUE_BYTES_MAX) && !reason(CONFIG_VALUE_BYTES_MAX + 1));
    }

    #[test]
    fn declarations_have_their_bounds() {
        use schema::limits::{SENSOR_DESCRIPTION_CHARS_MAX, SENSOR_UNIT_CHARS_MAX};
        use schema::message::DeclaredSensor;
        use schema::{SensorDeclaration, ValueType};
        let admitted = |count, change: &dyn Fn(&mut DeclaredSensor)| {
            let mut declared = DeclaredSensor {
                sensor: "s".parse().unwrap(),
                version: Hlc::from_bits(1),
                declaration: SensorDeclaration::default(),
            };
            change(&mut declared);
            let sensors = vec![declared; count];
            admit_event(&envelope::encode(&Event::Sensors(SensorReport { sensors })).unwrap())
        };
        let fits = |count, change: &dyn Fn(&mut DeclaredSensor)| admitted(count, change).is_ok();
        let most = SENSORS_MESSAGE_MAX;
        assert!(fits(0, &|_| {}) && fits(most - 1, &|_| {}) && fits(most, &|_| {}));
        assert!(!fits(most + 1, &|_| {}));
        let clock = |bits| fits(1, &|of| of.version = Hlc::from_bits(bits));
        assert!(clock(SQL_INTEGER_MAX - 1) && clock(SQL_INTEGER_MAX));
        assert!(!clock(SQL_INTEGER_MAX + 1));
        let unit = |text: &str| fits(1, &|of| of.declaration.unit = Some(text.to_owned()));
        assert!(unit(&"°".repeat(SENSOR_UNIT_CHARS_MAX)));
        assert!(!unit(&"°".repeat(SENSOR_UNIT_CHARS_MAX + 1)) && !unit("a\0") && !unit(""));
        let described = |chars| {
            let text = "d".repeat(chars);
            fits(1, &|of| of.declaration.description = Some(text.clone()))
        };
        assert!(described(SENSOR_DESCRIPTION_CHARS_MAX));
        assert!(!described(SENSOR_DESCRIPTION_CHARS_MAX + 1));
        assert!(!fits(1, &|of| of.declaration.max = Some(f64::NAN)));
        let error = admitted(1, &|of| {
            of.declaration.value_type = Some(ValueType::Text);
            of.declaration.min = Some(0.0);
        });
        assert!(!error.unwrap_err().is_newer(), "it is damage");
        // A name that is none, and a payload that ends early.
        let payload = envelope::encode(&(5u8, vec![("a\nb", Hlc::from_bits(1))])).unwrap();
        assert!(admit_event(&payload).is_err());
    }

    #[test]
    fn a_report_is_heard_of_as_many_epochs_as_an_agent_reports() {
        use schema::message::{ClockReport, ClockState, EpochAccount, EpochReport};
        let heard = |event: &Event| match admit_event(&envelope::encode(event).unwrap()).unwrap() {
            Event::Report(report) => report.epochs.iter().map(|of| of.epoch).collect::<Vec<_>>(),
            Event::Ledger(report) => report.epochs.iter().map(|of| of.epoch).collect(),
            other => panic!("{other:?}"),
        };
        let epochs = |count| (1..=count as u64).map(Epoch::from_random);
        let legacy = |count| {
            let report = |epoch| EpochReport {
                epoch,
                balance: Default::default(),
                evicted: Vec::new(),
                rejected: Vec::new(),
            };
            Event::Report(Report {
                device_time_ms: 0,
                epochs: epochs(count).map(report).collect(),
            })
        };
        let ledger = |count| {
            let account = |epoch| EpochAccount {
                epoch,
                balance: Default::default(),
                evicted: Vec::new(),
                quarantined: Vec::new(),
                discarded: Vec::new(),
            };
            Event::Ledger(LedgerReport {
                device_time_ms: 0,
                clock: ClockReport {
                    state: ClockState::Verified,
                    offset_ms: None,
                },
                epochs: epochs(count).map(account).collect(),
            })
        };
        let most = REPORT_EPOCHS_MAX;
        for count in [0, 1, most - 1, most, most + 1, 4 * most] {
            let expected: Vec<Epoch> = epochs(count.min(most)).collect();
            assert_eq!(heard(&legacy(count)), expected);
            assert_eq!(heard(&ledger(count)), expected);
        }
    }

    proptest! {
        #[test]
        fn no_payload_panics(payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (admit_status(&payload), admit_event(&payload));
            let received_at = ReceivedAt::from_micros(NOW);
            let _ = admit("d".parse().unwrap(), &payload, received_at, &bounds());
        }
    }
}
