//! What the link may carry, carried out: the session is paused and resumed, paced, and the link closed; and what was used is kept in the
//! buffer's file, in the commits that come anyway.

use std::num::NonZeroU32;
use std::time::Duration;

use daemon::Clock as _;
use schema::message::ClockState;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::DriverTask;
use crate::buffer::{Append, Buffer, BufferError, Hold, Position};
use crate::clock::AgentClock;
use crate::link::budget::Account;
use crate::link::governor::{Decision, Governor, Now, Sending, Why};
use crate::link::{Closed, LinkRules, LinkUse};
use crate::session::{Input, Tuning};

/// Where the account stands among the positions of sources: no source can have this name.
const ACCOUNT: &str = "[link] budget";

/// How long what is in flight may take before the link is closed: unanswered, it would be sent again.
const CLOSING: Duration = Duration::from_secs(10);

/// The account is kept so soon after the start, for a device that never runs long; and so often while it changes. What a crash loses of
/// it is what was used since.
const KEEP_FIRST: Duration = Duration::from_secs(10);
const KEEP_EVERY: Duration = Duration::from_secs(300);

/// And as soon as this part of the budget was used since.
const KEEP_DIVISOR: u64 = 500;

/// How long keeping it may take at the end.
const KEEP_LAST: Duration = Duration::from_secs(1);

/// What the driver needs for it.
#[derive(Debug)]
pub(crate) struct LinkControl {
    pub(crate) rules: LinkRules,
    pub(crate) shown: LinkUse,
    /// Closes the link.
    pub(crate) closed: watch::Sender<Option<Closed>>,
}

/// The decisions so far.
#[derive(Debug)]
pub(super) struct Governing {
    governor: Governor,
    decision: Decision,
    /// The limits as settings and bridge want them.
    tuning: Tuning,
    closing_since: Option<Instant>,
    keeper: Keeper,
    wakeup: Option<Instant>,
}

/// What of the account is on disk.
#[derive(Debug)]
struct Keeper {
    kept: Account,
    kept_at: Option<Instant>,
    begun: Instant,
    task: Option<JoinHandle<Result<Account, BufferError>>>,
}

impl Governing {
    /// Goes on with what the file holds. An account that cannot be read begins anew: less is known then than is right, and
    /// a budget is no reason not to start.
    pub(super) async fn begin(rules: LinkRules, buffer: &Buffer, tuning: Tuning) -> Self {
        let account = match &rules.budget {
            None => Account::default(),
            Some(_) => match buffer.position(ACCOUNT).await {
                Ok(Some(bytes)) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                    warn!(%error, "what was used of the link's budget cannot be read, and begins at zero");
                    Account::default()
                }),
                Ok(None) => Account::default(),
                Err(error) => {
                    warn!(%error, "what was used of the link's budget cannot be read, and begins at zero");
                    Account::default()
                }
            },
        };
        Self {
            keeper: Keeper {
                kept: account.clone(),
                kept_at: None,
                begun: Instant::now(),
                task: None,
            },
            governor: Governor::new(rules, account),
            decision: Decision {
                sending: Sending::All,
                until_ms: None,
                bytes_per_second: None,
            },
            tuning,
            closing_since: None,
            wakeup: None,
        }
    }

    /// When the calendar, or a link that is to be closed, wants a look.
    pub(super) const fn wakeup(&self) -> Option<Instant> {
        self.wakeup
    }

    /// Whether readings wait.
    pub(super) fn holds_back(&self) -> bool {
        self.decision.sending != Sending::All
    }

    /// The limits that hold: those of the settings, or tighter.
    fn tuning(&self) -> Tuning {
        let bound = self.decision.bytes_per_second;
        let both = |a: NonZeroU32, b: NonZeroU32| a.min(b);
        let bytes_per_second = match (self.tuning.bytes_per_second, bound) {
            (Some(wanted), Some(bound)) => Some(both(wanted, bound)),
            (wanted, bound) => wanted.or(bound),
        };
        Tuning {
            bytes_per_second,
            ..self.tuning
        }
    }
}

/// What the session is told.
const fn input(sending: Sending) -> Input<'static> {
    match sending {
        Sending::All => Input::Resume,
        Sending::Alarms(_) => Input::AlarmsOnly,
        Sending::Nothing(_) => Input::Pause,
    }
}

impl DriverTask {
    /// Looks at clock and counts, and carries out what follows.
    pub(super) async fn govern(&mut self) {
        let control = &self.parts.link_control;
        let time_ms = known_ms(&self.parts.clock);
        let uptime = self.origin.elapsed();
        let decision = self.governing.governor.decide(Now {
            time_ms,
            uptime,
            bytes: control.shown.meters.traffic.total(),
        });
        let committed = self.parts.buffer.balance().committed;
        let governor = &self.governing.governor;
        control
            .shown
            .note(governor, decision, time_ms, uptime, committed);
        let before = std::mem::replace(&mut self.governing.decision, decision);
        if before.sending != decision.sending {
            self.allow(before.sending, decision).await;
        }
        if before.bytes_per_second != decision.bytes_per_second {
            self.input(Input::Tune(self.governing.tuning())).await;
        }
        let closing = self.close_or_open(decision);
        let left = decision.until_ms.zip(time_ms).map(|(until, now)| {
            let ms = (until - now).clamp(1, 3_600_000);
            Instant::now() + Duration::from_millis(ms.unsigned_abs())
        });
        self.governing.wakeup = closing.into_iter().chain(left).min();
        self.keep_account().await;
    }

    /// Which readings may go.
    async fn allow(&mut self, before: Sending, decision: Decision) {
        let now = input(decision.sending);
        if std::mem::discriminant(&now) != std::mem::discriminant(&input(before)) {
            self.input(now).await;
        }
        let until_ms = decision.until_ms;
        match decision.sending {
            Sending::All => debug!(?until_ms, "readings are sent"),
            Sending::Alarms(Why::Pace) => debug!(?until_ms, "readings wait for the budget's pace"),
            Sending::Alarms(why @ Why::Quiet)
            | Sending::Nothing(why @ (Why::Quiet | Why::Pace)) => {
                info!(?until_ms, %why, "readings wait");
            }
            Sending::Alarms(why @ Why::Limit) | Sending::Nothing(why @ Why::Limit) => warn!(
                ?until_ms,
                %why,
                help = "[link] budget and at_limit say what happens now; readings are kept",
                "readings wait"
            ),
        }
    }

    /// Closes the link once nothing is in flight, or opens it. Returns when to look again.
    fn close_or_open(&mut self, decision: Decision) -> Option<Instant> {
        let closed = &self.parts.link_control.closed;
        let Sending::Nothing(why) = decision.sending else {
            self.governing.closing_since = None;
            closed.send_if_modified(|closed| closed.take().is_some());
            return None;
        };
        if closed.borrow().is_some() {
            return None;
        }
        let since = *self
            .governing
            .closing_since
            .get_or_insert_with(Instant::now);
        let is_settled = self.parts.session.in_flight().batches == 0 || self.uplink.is_none();
        if !is_settled && since.elapsed() < CLOSING {
            return Some(since + CLOSING);
        }
        let until_ms = decision.until_ms;
        closed.send_replace(Some(Closed { why, until_ms }));
        None
    }

    /// The limits of settings and bridge have changed.
    pub(super) async fn tuned(&mut self, tuning: Tuning) {
        self.governing.tuning = tuning;
        self.input(Input::Tune(self.governing.tuning())).await;
    }

    /// Keeps the account when that is due. It waits for the next commit, and nobody waits for it.
    async fn keep_account(&mut self) {
        if self.governing.governor.rules().budget.is_none() {
            return;
        }
        let keeper = &mut self.governing.keeper;
        if let Some(task) = keeper.task.take_if(|task| task.is_finished()) {
            match task.await {
                Ok(Ok(account)) => keeper.kept = account,
                Ok(Err(error)) => self.storage_failed("keep what the link used", &error),
                Err(error) => debug!(%error, "the account was not kept"),
            }
        }
        let Governing {
            governor, keeper, ..
        } = &mut self.governing;
        if keeper.task.is_none() && keeper.is_due(governor) {
            keeper.kept_at = Some(Instant::now());
            let (buffer, account) = (self.parts.buffer.clone(), governor.account().clone());
            let keeping = async move { keep(&buffer, account, Hold::Linger).await };
            keeper.task = Some(tokio::spawn(keeping));
        }
    }

    /// Keeps the account at the end.
    pub(super) async fn keep_account_last(&mut self) {
        self.govern_counts();
        let governor = &self.governing.governor;
        let is_kept = self.governing.keeper.kept.used == governor.account().used;
        if governor.rules().budget.is_none() || is_kept {
            return;
        }
        let account = governor.account().clone();
        let at_once = Hold::AtMost(Duration::ZERO);
        match timeout(KEEP_LAST, keep(&self.parts.buffer, account, at_once)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!(%error, "what the link used last is not kept"),
            Err(_) => warn!("what the link used last is not kept: the disk takes too long"),
        }
    }

    /// Counts what the farewell took.
    fn govern_counts(&mut self) {
        let bytes = self.parts.link_control.shown.meters.traffic.total();
        let _ = self.governing.governor.decide(Now {
            time_ms: known_ms(&self.parts.clock),
            uptime: self.origin.elapsed(),
            bytes,
        });
    }
}

impl Keeper {
    fn is_due(&self, governor: &Governor) -> bool {
        let Some(budget) = &governor.rules().budget else {
            return false;
        };
        let account = governor.account();
        let has_begun = account.begun_ms != self.kept.begun_ms;
        let more = account.used.abs_diff(self.kept.used);
        let waited = match self.kept_at {
            None => self.begun.elapsed() >= KEEP_FIRST,
            Some(at) => at.elapsed() >= KEEP_EVERY,
        };
        has_begun || more >= (budget.bytes / KEEP_DIVISOR).max(1) || (more > 0 && waited)
    }
}

async fn keep(buffer: &Buffer, account: Account, hold: Hold) -> Result<Account, BufferError> {
    let place = serde_json::to_vec(&account).unwrap_or_default();
    let append = Append {
        hold,
        position: Position::new(ACCOUNT, place),
        ..Append::default()
    };
    buffer.append(append).await?;
    Ok(account)
}

/// The time, if somebody else has confirmed it.
fn known_ms(clock: &AgentClock) -> Option<i64> {
    match clock.report().state {
        ClockState::Verified | ClockState::Kernel => i64::try_from(clock.now_ms()).ok(),
        ClockState::Unverified => None,
    }
}
