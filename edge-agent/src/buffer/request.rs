//! What the handle asks of the thread that owns the file, over one bounded queue.

use schema::message::{
    Command, CommandProgress, CommandState, ConfigEntry, EpochAccount, Noted, RejectReason,
    Rejection,
};
use schema::{Balance, Epoch, RangeSet};
use tokio::sync::oneshot;

use super::append::Append;
use super::commands::{Kept, StoredCommands};
use super::epochs::Run;
use super::error::BufferError;
use super::handle::{Appended, Taken};
use super::small_tables::{Origin, StoredSetting};
use crate::clock::core::{Release, StartClock};

/// Requests that may wait for the thread; more make their callers wait.
pub(super) const REQUESTS_MAX: usize = 256;

pub(super) type Reply<T> = oneshot::Sender<Result<T, BufferError>>;

/// What the thread may be asked for, and where it answers.
#[derive(Debug)]
pub(super) enum Request {
    Append {
        append: Append,
        reply: Reply<Appended>,
    },
    Read {
        ranges: RangeSet,
        rows_max: usize,
        reply: Reply<Taken>,
    },
    Settle {
        /// Whose sequences follow; `None`: rows of the file.
        epoch: Option<Epoch>,
        committed: RangeSet,
        rejected: Vec<Rejection>,
        evicted: RangeSet,
        reply: Reply<Balance>,
    },
    Requeue {
        reasons: Option<Vec<RejectReason>>,
        reply: Reply<u64>,
    },
    OfferSample {
        reason: RejectReason,
        rows_max: u64,
        chance: u64,
        reply: Reply<RangeSet>,
    },
    Discard {
        reasons: Option<Vec<RejectReason>>,
        reply: Reply<u64>,
    },
    Offer {
        protocol: Option<u16>,
        reply: Reply<u64>,
    },
    Report {
        reply: Reply<Vec<EpochAccount>>,
    },
    KeepCommand {
        command: Command,
        state: CommandState,
        has_room: bool,
        reply: Reply<Kept>,
    },
    MoveCommand {
        progress: CommandProgress,
        reply: Reply<()>,
    },
    NoteCommands {
        noted: Vec<Noted>,
        forget_before_ms: i64,
        reply: Reply<()>,
    },
    KeepConfig {
        entries: Vec<ConfigEntry>,
        origin: Origin,
        reply: Reply<()>,
    },
    Config {
        reply: Reply<Vec<StoredSetting>>,
    },
    Commands {
        reply: Reply<StoredCommands>,
    },
    Release {
        verdicts: Vec<(Epoch, Release)>,
        current: StartClock,
        is_news: bool,
        reply: Reply<()>,
    },
    BeginAgain {
        start: StartClock,
        reply: Reply<Option<[Run; 2]>>,
    },
    LimitPages {
        pages_max: u32,
        reply: Reply<()>,
    },
    Close,
}
