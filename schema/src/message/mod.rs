//! The messages beside batches, one file for each topic that carries them. All travel through
//! [`crate::envelope`]; the order of fields and variants is the wire format.

pub mod ack;
pub mod command;
pub mod config;
pub mod event;
pub mod sensor;
pub mod status;

use crate::envelope::Kinds;

pub use ack::{Ack, Downlink, Hello, Refusal, RejectReason, Rejection};
pub use command::{
    Ask, Cancel, Command, CommandId, CommandIdError, CommandProgress, CommandRequest, CommandState,
    KnownCommand, Noted,
};
pub use config::{ConfigEntry, DesiredConfig, FailedKey, ReportedConfig};
pub use event::{
    ClockReport, ClockState, Discard, EpochAccount, EpochReport, Event, LedgerReport,
    LegacyBalance, Report, TimeRequest,
};
pub use sensor::{DeclaredSensor, NotedSensor, SensorNote, SensorReport};
pub use status::Status;

/// What a build of today understands beyond version 1 of the envelope: 1 was never said, agents and
/// bridges 0.1 spoke it; 2 has the quarantine, the ledger report and the database's time; 3 declarations of sensors.
pub const PROTOCOL: u16 = 3;

/// The first protocol of a bridge that keeps declarations of sensors.
pub const PROTOCOL_SENSORS: u16 = 3;

impl Kinds for Downlink {
    const KNOWN: u64 = 5;
}

impl Kinds for Event {
    const KNOWN: u64 = 6;
}

impl Kinds for CommandRequest {
    const KNOWN: u64 = 3;
}

impl Kinds for Status {
    const KNOWN: u64 = 2;
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::envelope::{EnvelopeError, decode_kind};
    use crate::sensor::Precision;
    use crate::{
        Balance, DiscardedBy, Epoch, Hlc, SensorDeclaration, SeqRange, ValueType, envelope,
    };

    /// Other versions of Tideline read these bytes: a change that breaks this test needs a new
    /// wire version, not a new expectation.
    #[track_caller]
    fn check<M: Serialize + DeserializeOwned + PartialEq + Debug>(message: &M, expected: &str) {
        let payload = envelope::encode(message).unwrap();
        let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
        assert_eq!(envelope::decode::<M>(&payload).as_ref(), Ok(message));
    }

    fn range(first: u64, last: u64) -> SeqRange {
        SeqRange::new(first, last).unwrap()
    }

    #[test]
    fn an_ack_keeps_its_bytes() {
        let rejection = |range, reason| Rejection { range, reason };
        check(
            &Downlink::Ack(Ack {
                bridge_time_ms: 1_700_000_000_000,
                epoch: Epoch::from_random(0x1234),
                committed: vec![range(1, 300), range(302, 302)],
                evicted: vec![range(303, 304)],
                rejected: vec![
                    rejection(range(305, 305), RejectReason::NotFinite),
                    rejection(range(306, 306), RejectReason::Unstorable),
                ],
                resync: vec![range(301, 301)],
            }),
            "01000080a0abfef962b4240201ac02ae02ae0201af02b00202b102b10200b202b2020701ad02ad02",
        );
        check(
            &Downlink::Refused(Refusal {
                payload_digest: ack::payload_digest(b"tideline"),
                reason: "no".to_owned(),
            }),
            "010001a2f6faa4c7c1e6b879026e6f",
        );
    }

    #[test]
    fn reasons_keep_their_numbers_and_names() {
        let reasons = [
            (RejectReason::NotFinite, "not_finite"),
            (RejectReason::BadText, "bad_text"),
            (RejectReason::TooOld, "too_old"),
            (RejectReason::TooNew, "too_new"),
            (RejectReason::OutOfRange, "out_of_range"),
            (RejectReason::Undecodable, "undecodable"),
            (RejectReason::EpochReuse, "epoch_reuse"),
            (RejectReason::Unstorable, "unstorable"),
        ];
        for (number, (reason, name)) in reasons.into_iter().enumerate() {
            check(&reason, &format!("0100{number:02x}"));
            assert_eq!(reason.as_str(), name);
            assert_eq!(RejectReason::named(name), Some(reason));
            // JSON and tables spell it alike.
            assert_eq!(serde_json::to_string(&reason).unwrap(), format!("{name:?}"));
        }
    }

    #[test]
    fn an_event_keeps_its_bytes() {
        check(
            &Event::Report(Report {
                device_time_ms: 1_700_000_000_000,
                epochs: vec![EpochReport {
                    epoch: Epoch::from_random(0x1234),
                    balance: LegacyBalance {
                        accepted: 310,
                        committed: 301,
                        pending: 5,
                        evicted: 2,
                        rejected: 2,
                    },
                    evicted: vec![range(303, 304)],
                    rejected: vec![Rejection {
                        range: range(305, 306),
                        reason: RejectReason::Undecodable,
                    }],
                }],
            }),
            "01000080a0abfef96201b424b602ad0205020201af02b00201b102b20205",
        );
        check(
            &Event::Command(CommandProgress {
                id: CommandId::from_bits(0x0190_0000_0000_7000_8000_0000_0000_0001),
                state: CommandState::Unknown,
                percent: 40,
                output: "x".to_owned(),
            }),
            "01000181808080808080808081c08380808080900306280178",
        );
        check(
            &Event::Config(ReportedConfig {
                entries: vec![entry()],
                failed: vec![FailedKey {
                    key: "k".to_owned(),
                    reason: "no".to_owned(),
                }],
            }),
            "010002011173616d706c696e672e696e74657276616c052231307322818080c0d6fcf3c50101016b026e6f",
        );
    }

    #[test]
    fn a_ledger_report_keeps_its_bytes() {
        check(
            &Event::Ledger(LedgerReport {
                device_time_ms: 1_700_000_000_000,
                clock: ClockReport {
                    state: ClockState::Verified,
                    offset_ms: Some(-3_600_000),
                },
                epochs: vec![EpochAccount {
                    epoch: Epoch::from_random(0x1234),
                    balance: Balance {
                        accepted: 310,
                        committed: 300,
                        pending: 4,
                        quarantined: 2,
                        evicted: 2,
                        discarded: 2,
                    },
                    evicted: vec![range(303, 304)],
                    quarantined: vec![Rejection {
                        range: range(305, 306),
                        reason: RejectReason::TooNew,
                    }],
                    discarded: vec![Discard {
                        range: range(307, 308),
                        by: DiscardedBy::QuarantineBudget,
                        reason: Some(RejectReason::TooOld),
                    }],
                }],
            }),
            "01000380a0abfef9620101ffb9b70301b424b602ac020402020201af02b00201b102b2020301b302b402010102",
        );
        check(
            &Event::TimeRequest(TimeRequest { nonce: 300 }),
            "010004ac02",
        );
        check(
            &Downlink::Hello(Hello {
                nonce: 300,
                bridge_time_ms: 1_700_000_000_000,
                protocol: 2,
            }),
            "010003ac0280a0abfef96202",
        );
    }

    #[test]
    fn words_of_the_ledger_keep_their_numbers_and_names() {
        for (number, by) in DiscardedBy::ALL.into_iter().enumerate() {
            check(&by, &format!("0100{number:02x}"));
            let name = by.as_str();
            assert_eq!(serde_json::to_string(&by).unwrap(), format!("{name:?}"));
        }
        let states = [
            ClockState::Unverified,
            ClockState::Verified,
            ClockState::Kernel,
        ];
        for (number, state) in states.into_iter().enumerate() {
            check(&state, &format!("0100{number:02x}"));
            let name = state.as_str();
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("{name:?}"));
        }
    }

    #[test]
    fn a_kind_that_only_newer_peers_know_is_told_from_damage() {
        #[track_caller]
        fn check_known<M: Kinds + Serialize + Debug + PartialEq>(last: &M) {
            let payload = envelope::encode(last).unwrap();
            assert_eq!(u64::from(payload[2]) + 1, M::KNOWN);
            assert_eq!(decode_kind::<M>(&payload).as_ref(), Ok(last));
            for kind in [M::KNOWN, 200] {
                let mut newer = vec![envelope::VERSION, 0];
                newer.extend(postcard::to_allocvec(&kind).unwrap());
                newer.extend([7; 9]);
                let error = Err(EnvelopeError::UnknownKind(kind));
                assert_eq!(decode_kind::<M>(&newer), error);
            }
            // Damage stays damage.
            for body in [&[] as &[u8], &[0], &[0xff]] {
                let payload = [&[envelope::VERSION, 0], body].concat();
                let damaged = decode_kind::<M>(&payload);
                assert!(matches!(damaged, Err(EnvelopeError::Body(_))), "{body:?}");
            }
        }
        check_known(&Downlink::Sensors(Vec::new()));
        check_known(&Event::Sensors(SensorReport::default()));
        check_known(&CommandRequest::Ask(Ask {
            id: CommandId::from_bits(1),
            expires_at_ms: 1,
        }));
        check_known(&Status::Offline { session: 1 });
    }

    #[test]
    fn counts_are_told_to_bridges_that_know_no_quarantine() {
        let balance = Balance {
            accepted: 21,
            committed: 6,
            pending: 5,
            quarantined: 4,
            evicted: 3,
            discarded: 3,
        };
        let legacy = LegacyBalance::from(balance);
        assert_eq!((legacy.pending, legacy.rejected), (5, 7));
        let heard = Balance::from(legacy);
        assert!(heard.is_balanced());
        assert_eq!((heard.quarantined, heard.discarded), (0, 7));
    }

    #[test]
    fn commands_and_configuration_keep_their_bytes() {
        let id = CommandId::from_bits(0x0190_0000_0000_7000_8000_0000_0000_0001);
        assert_eq!(id.to_string(), "01900000-0000-7000-8000-000000000001");
        check(
            &CommandRequest::Run(Command {
                id,
                name: "ping".to_owned(),
                arguments: "{}".to_owned(),
                expires_at_ms: 1_700_000_000_000,
                priority: 3,
            }),
            "01000081808080808080808081c0838080808090030470696e67027b7d80a0abfef96203",
        );
        check(
            &CommandRequest::Cancel(Cancel {
                id,
                expires_at_ms: 1_700_000_000_000,
            }),
            "01000181808080808080808081c08380808080900380a0abfef962",
        );
        check(
            &CommandRequest::Ask(Ask {
                id,
                expires_at_ms: 1_700_000_000_000,
            }),
            "01000281808080808080808081c08380808080900380a0abfef962",
        );
        check(
            &Downlink::Noted(vec![Noted {
                id,
                state: CommandState::Succeeded,
            }]),
            "0100020181808080808080808081c08380808080900302",
        );
        check(
            &DesiredConfig {
                entries: vec![entry()],
            },
            "0100011173616d706c696e672e696e74657276616c052231307322818080c0d6fcf3c501",
        );
    }

    #[test]
    fn declarations_of_sensors_keep_their_bytes() {
        let sensor: crate::SensorName = "oil/°".parse().unwrap();
        let version = Hlc::new(1_700_000_000_000, 1);
        let declared = |declaration| DeclaredSensor {
            sensor: sensor.clone(),
            version,
            declaration,
        };
        check(
            &Event::Sensors(SensorReport {
                sensors: vec![
                    declared(SensorDeclaration {
                        unit: Some("Cel".to_owned()),
                        description: Some("oil".to_owned()),
                        value_type: Some(ValueType::Integer),
                        min: Some(-40.0),
                        max: Some(1.5),
                        precision: Some(Precision::Decimals(2)),
                        interval_ms: Some(10_000),
                    }),
                    declared(SensorDeclaration {
                        precision: Some(Precision::Step(0.5)),
                        ..SensorDeclaration::default()
                    }),
                ],
            }),
            "01000502066f696c2fc2b0818080c0d6fcf3c501010343656c01036f696c01010100000000000044c001000000000000f83f01000201904e066f696c2fc2b0818080c0d6fcf3c50100000000000101000000000000e03f00",
        );
        check(
            &Downlink::Sensors(vec![
                NotedSensor {
                    sensor: sensor.clone(),
                    version,
                    note: SensorNote::Kept,
                },
                NotedSensor {
                    sensor: sensor.clone(),
                    version,
                    note: SensorNote::TooNew,
                },
            ]),
            "01000402066f696c2fc2b0818080c0d6fcf3c50100066f696c2fc2b0818080c0d6fcf3c50102",
        );
        check(
            &Downlink::Hello(Hello {
                nonce: 300,
                bridge_time_ms: 1_700_000_000_000,
                protocol: PROTOCOL,
            }),
            "010003ac0280a0abfef96203",
        );
    }

    #[test]
    fn presence_keeps_its_bytes() {
        check(
            &Status::Online {
                session: 7,
                epoch: Epoch::from_random(0x1234),
                agent_version: "0.1.0".to_owned(),
            },
            "01000007b42405302e312e30",
        );
        check(&Status::Offline { session: 7 }, "01000107");
    }

    fn entry() -> ConfigEntry {
        ConfigEntry {
            key: "sampling.interval".to_owned(),
            value: "\"10s\"".to_owned(),
            hlc: Hlc::new(1_700_000_000_000, 1),
        }
    }
}
