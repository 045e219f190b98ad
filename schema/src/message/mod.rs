//! The messages beside batches, one file for each topic that carries them. All travel through
//! [`crate::envelope`]; the order of fields and variants is the wire format.

pub mod ack;
pub mod command;
pub mod config;
pub mod event;
pub mod status;

pub use ack::{Ack, Downlink, Refusal, RejectReason, Rejection};
pub use command::{
    Ask, Cancel, Command, CommandId, CommandIdError, CommandProgress, CommandState, KnownCommand,
    Noted, Order,
};
pub use config::{ConfigEntry, DesiredConfig, FailedKey, ReportedConfig};
pub use event::{EpochReport, Event, Report};
pub use status::Status;

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::{Balance, Epoch, Hlc, SeqRange, envelope};

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
                    balance: Balance {
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
    fn commands_and_configuration_keep_their_bytes() {
        let id = CommandId::from_bits(0x0190_0000_0000_7000_8000_0000_0000_0001);
        assert_eq!(id.to_string(), "01900000-0000-7000-8000-000000000001");
        check(
            &Order::Run(Command {
                id,
                name: "ping".to_owned(),
                arguments: "{}".to_owned(),
                expires_at_ms: 1_700_000_000_000,
                priority: 3,
            }),
            "01000081808080808080808081c0838080808090030470696e67027b7d80a0abfef96203",
        );
        check(
            &Order::Cancel(Cancel {
                id,
                expires_at_ms: 1_700_000_000_000,
            }),
            "01000181808080808080808081c08380808080900380a0abfef962",
        );
        check(
            &Order::Ask(Ask {
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
