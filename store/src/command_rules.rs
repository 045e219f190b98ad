//! What becomes of one command in the database, as plain functions. The statements say the same in SQL, and the contract
//! tests hold them to it on both databases; the simulation runs on these.

use schema::message::{CommandProgress, CommandState};
use schema::time::ReceivedAt;

use super::commands::{
    AGAIN_SECONDS, AGAIN_SECONDS_MAX, ASK_AGAIN_SECONDS, AWAY_SECONDS, EXPIRY_GRACE_MICROS,
    STEP_DELIVERED, STEP_ENDED, STEP_RUNNING, STEP_SENT, State, step,
};

/// Where one command stands in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What everybody sees.
    pub state: State,
    /// How far on that is; a report of the device only ever raises it.
    step: i64,
    /// As the device said last.
    pub percent: u8,
    /// As the device said last.
    pub output: String,
    /// It was withdrawn, and that is being sent to the device.
    pub cancel: bool,
    /// How often it was sent.
    pub sent_times: u64,
    /// When it is to be sent, again.
    due_at: Option<ReceivedAt>,
    /// When the device last said something.
    pub heard_at: Option<ReceivedAt>,
    /// When it ended.
    pub ended_at: Option<ReceivedAt>,
}

impl Standing {
    /// A command that was asked for now.
    #[must_use]
    pub const fn queued(now: ReceivedAt) -> Self {
        Self {
            state: State::Queued,
            step: 0,
            percent: 0,
            output: String::new(),
            cancel: false,
            sent_times: 0,
            due_at: Some(now),
            heard_at: None,
            ended_at: None,
        }
    }

    /// Whether its end is what the device reported, or was decided before it was sent.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.step >= STEP_ENDED
    }

    /// Whether the device said that it has it.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.step >= STEP_DELIVERED
    }

    /// Takes it to be sent, if it is due, to a device that is there.
    pub fn claim(&mut self, now: ReceivedAt) -> bool {
        self.claim_for(now, false)
    }

    /// The same; what is for a device that went away is sent once, and waits for it to come back.
    pub fn claim_for(&mut self, now: ReceivedAt, is_away: bool) -> bool {
        if self.due_at.is_none_or(|due| due > now) {
            return false;
        }
        if self.step == 0 {
            self.state = State::Sent;
            self.step = STEP_SENT;
        }
        self.sent_times += 1;
        let times = i64::try_from(self.sent_times).unwrap_or(i64::MAX);
        let pause = match is_away {
            true => AWAY_SECONDS,
            false => AGAIN_SECONDS.saturating_mul(times).min(AGAIN_SECONDS_MAX),
        };
        self.due_at = Some(later(now, pause));
        true
    }

    /// Its device came back: what is open is due. What was never sent keeps its turn.
    pub fn recall(&mut self, now: ReceivedAt) -> bool {
        let is_open = self.step > 0 && self.due_at.is_some_and(|due| due > now);
        if is_open {
            self.due_at = Some(now);
        }
        is_open
    }

    /// What the device reports counts if it is not behind what is known.
    pub fn hear(&mut self, progress: &CommandProgress, now: ReceivedAt) -> bool {
        let said = step(progress.state);
        let again = self.step == said && said <= STEP_RUNNING;
        if self.step >= said && !again {
            return false;
        }
        self.state = State::Reported(progress.state);
        self.step = said;
        self.percent = progress.percent;
        self.output.clone_from(&progress.output);
        self.heard_at = Some(now);
        let has_ended = said >= STEP_ENDED;
        self.ended_at = has_ended.then_some(now);
        self.due_at = match (has_ended, self.cancel) {
            (true, _) => None,
            (false, true) => self.due_at.or(Some(now)),
            (false, false) => Some(later(now, ASK_AGAIN_SECONDS)),
        };
        true
    }

    /// Withdraws it: at once if it was not sent, else that is sent until its device answers.
    pub fn withdraw(&mut self, now: ReceivedAt) {
        if self.step == 0 {
            self.state = State::Reported(CommandState::Cancelled);
            self.step = STEP_ENDED;
            self.ended_at = Some(now);
            self.due_at = None;
        } else if self.step < STEP_ENDED && self.ended_at.is_none() {
            self.cancel = true;
            self.due_at = Some(now);
        }
    }

    /// Gives it up when it expired a minute ago and nothing was heard of it.
    pub fn expire(&mut self, expires_at_ms: i64, now: ReceivedAt) -> bool {
        let before = now.micros().saturating_sub(EXPIRY_GRACE_MICROS);
        let is_over = self.due_at.is_some()
            && self.step <= STEP_SENT
            && expires_at_ms.saturating_mul(1000) < before;
        if is_over {
            self.state = State::Reported(CommandState::Expired);
            self.step = STEP_SENT;
            self.ended_at = Some(now);
            self.due_at = None;
        }
        is_over
    }
}

fn later(now: ReceivedAt, seconds: i64) -> ReceivedAt {
    ReceivedAt::from_micros(now.micros().saturating_add(1_000_000 * seconds))
}
