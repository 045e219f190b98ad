//! One command to many devices: an order that is kept first, then made into a row for each device,
//! page by page, so that it survives whoever began it.
//!
//! ```text
//! ordered ──pages──► spread ──► every row has ended
//!    └──────┬──────────┘
//!       cancelled ──pages──► every row is withdrawn
//! ```
//!
//! Each device has its turn: the first at once, the next an interval later. A row is due at its
//! device's turn, so the rate holds however many bridges send and whenever they do; turns that
//! passed while nobody could send go behind the last one.
//!
//! Reading order: this file → `sql` (the statements).

pub(crate) mod sql;

use async_trait::async_trait;
use schema::DeviceId;
use schema::message::{Command, CommandId};
use schema::time::ReceivedAt;

use super::StoreError;
use super::commands::{CommandRecord, State};
use super::labels::Labels;
use super::requests::{Repeated, RequestKey};

/// Devices of one page: one statement, short enough that nobody waits long for it.
pub const FAN_OUT_PAGE: usize = 1_000;

/// How long an unfinished fan-out is left to whoever was last at it.
pub const FAN_OUT_LEASE_MICROS: i64 = 10_000_000;

/// A turn that passed so long ago was missed: everybody who could send was away.
pub const FAN_OUT_LATE_MICROS: i64 = 3_000_000;

/// Between two withdrawals, so that what people ask for meanwhile finds its place between them.
const WITHDRAW_INTERVAL_MICROS: i64 = 2_000;

/// The part of a store that sends to many devices.
#[async_trait]
pub trait FanOutStore: Send + Sync {
    /// Keeps an order. One that is known stays as it is, by its id or by the key of its request;
    /// what is there under the key is returned.
    async fn order_fan_out(&self, new: &NewFanOut) -> Result<Option<Repeated>, StoreError>;

    /// What this caller has asked for under a key.
    async fn repeated_fan_out(
        &self,
        created_by: &str,
        request: &RequestKey,
    ) -> Result<Option<Repeated>, StoreError>;

    /// Does the next page of what is to be done: rows for devices, or their withdrawal. Returns
    /// whether there is more.
    async fn advance_fan_out(&self, id: CommandId, now: ReceivedAt) -> Result<bool, StoreError>;

    /// Fan-outs that nobody has been at for [`FAN_OUT_LEASE_MICROS`] and that are to be advanced.
    async fn unfinished_fan_outs(
        &self,
        now: ReceivedAt,
        limit: usize,
    ) -> Result<Vec<CommandId>, StoreError>;

    /// Moves turns that were missed behind the last one, of fan-outs that still run. Returns how
    /// many.
    async fn postpone_fan_outs(&self, now: ReceivedAt) -> Result<u64, StoreError>;

    /// Has a fan-out withdrawn by the next calls of [`Self::advance_fan_out`]. Returns whether it
    /// is known.
    async fn cancel_fan_out(&self, id: CommandId, now: ReceivedAt) -> Result<bool, StoreError>;

    /// One fan-out, with how its rows stand.
    async fn fan_out(&self, id: CommandId) -> Result<Option<FanOut>, StoreError>;

    /// Its rows in one state, by device, behind `after`.
    async fn fan_out_commands(
        &self,
        id: CommandId,
        state: State,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<CommandRecord>, StoreError>;
}

/// A command for many devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFanOut {
    /// What; every device gets it with this id. Its expiry is the first device's.
    pub command: Command,
    /// For the devices that have all of these and are not retired.
    pub labels: Labels,
    /// From one device's turn to the next one's.
    pub interval_micros: i64,
    /// How long the command may wait from a device's turn on.
    pub ttl_micros: i64,
    /// When it was asked for.
    pub created_at: ReceivedAt,
    /// The name of the caller that asked for it.
    pub created_by: String,
    /// What its caller calls the request; not read back.
    pub request: Option<RequestKey>,
}

/// A fan-out and how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FanOut {
    /// What was asked for.
    pub order: NewFanOut,
    /// Devices that have their row.
    pub devices: u64,
    /// How many rows are in which state; none is left out that any row is in.
    pub states: Vec<(State, u64)>,
    /// Rows are still to be made, or to be withdrawn.
    pub is_unfinished: bool,
    /// When it was cancelled.
    pub cancelled_at: Option<ReceivedAt>,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Rows for the next devices.
    Spread,
    /// Withdraw the next rows.
    Withdraw,
    /// Nothing.
    Nothing,
}

/// How far an order is, as the database keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Head {
    order: NewFanOut,
    devices: u64,
    after: String,
    next_due_at: ReceivedAt,
    is_spread: bool,
    cancelled_at: Option<ReceivedAt>,
    is_unfinished: bool,
}

/// The turn of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Turn {
    device: DeviceId,
    due_at: ReceivedAt,
    expires_at: ReceivedAt,
}

impl FanOut {
    /// Whether nothing more is to be expected.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        !self.is_unfinished && self.states.iter().all(|(state, _)| state.is_final())
    }
}

impl Head {
    const fn step(&self) -> Step {
        match (self.is_unfinished, self.cancelled_at, self.is_spread) {
            (false, _, _) | (true, None, true) => Step::Nothing,
            (true, Some(_), _) => Step::Withdraw,
            (true, None, false) => Step::Spread,
        }
    }

    /// The turns of the next devices, none of them in the past; and then the one that follows.
    fn turns(&self, devices: Vec<DeviceId>, now: ReceivedAt) -> (Vec<Turn>, ReceivedAt) {
        let mut due = self.next_due_at.max(now).micros();
        let mut turns = Vec::with_capacity(devices.len());
        for device in devices {
            turns.push(Turn {
                device,
                due_at: ReceivedAt::from_micros(due),
                expires_at: ReceivedAt::from_micros(due.saturating_add(self.order.ttl_micros)),
            });
            due = due.saturating_add(self.order.interval_micros);
        }
        (turns, ReceivedAt::from_micros(due))
    }

    fn into_fan_out(self, states: Vec<(State, u64)>) -> FanOut {
        FanOut {
            order: self.order,
            devices: self.devices,
            states,
            is_unfinished: self.is_unfinished,
            cancelled_at: self.cancelled_at,
        }
    }
}

impl Turn {
    const fn due(&self) -> (&DeviceId, ReceivedAt) {
        (&self.device, self.due_at)
    }
}

/// When each of some withdrawals is due.
fn withdrawals(now: ReceivedAt) -> impl Iterator<Item = ReceivedAt> {
    (0..).map(move |place: i64| {
        let later = place.saturating_mul(WITHDRAW_INTERVAL_MICROS);
        ReceivedAt::from_micros(now.micros().saturating_add(later))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            order: NewFanOut {
                command: Command {
                    id: CommandId::from_bits(1),
                    name: "ping".to_owned(),
                    arguments: "{}".to_owned(),
                    expires_at_ms: 0,
                    priority: 0,
                },
                labels: Labels::new(),
                interval_micros: 100,
                ttl_micros: 1_000,
                created_at: ReceivedAt::from_micros(0),
                created_by: String::new(),
                request: None,
            },
            devices: 0,
            after: String::new(),
            next_due_at: ReceivedAt::from_micros(500),
            is_spread: false,
            cancelled_at: None,
            is_unfinished: true,
        }
    }

    #[test]
    fn turns_keep_their_distance_and_none_is_in_the_past() {
        let devices = || ["a", "b"].map(|name| name.parse().unwrap()).to_vec();
        let turns = |now| {
            let (turns, next) = head().turns(devices(), ReceivedAt::from_micros(now));
            let due = turns.iter().map(|turn| turn.due_at.micros());
            (due.collect::<Vec<_>>(), next.micros())
        };
        assert_eq!(turns(0), (vec![500, 600], 700));
        assert_eq!(turns(900), (vec![900, 1_000], 1_100));
        let (turns, _) = head().turns(devices(), ReceivedAt::from_micros(0));
        assert_eq!(turns[1].expires_at.micros(), 1_600);
    }

    #[test]
    fn what_is_cancelled_is_withdrawn_whether_spread_or_not() {
        let step = |is_unfinished, is_cancelled: bool, is_spread| {
            let head = Head {
                is_unfinished,
                cancelled_at: is_cancelled.then(ReceivedAt::default),
                is_spread,
                ..head()
            };
            head.step()
        };
        assert_eq!(step(true, false, false), Step::Spread);
        for is_spread in [false, true] {
            assert_eq!(step(true, true, is_spread), Step::Withdraw);
            assert_eq!(step(false, true, is_spread), Step::Nothing);
        }
        assert_eq!(step(true, false, true), Step::Nothing);
    }
}
