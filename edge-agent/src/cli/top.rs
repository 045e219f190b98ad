//! `top`: the status of the running agent, again every second. On a terminal it takes the whole screen and gives it
//! back; elsewhere it prints a line each time.

use std::io::{self, IsTerminal, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use daemon::stdout::print;
use daemon::{Class, Failure};
use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use schema::timestamp::rfc3339;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::status::{Answer, Asked, ask, wrong_with};
use super::terminal_size;
use crate::source::SourceState;
use crate::status::{Status, text};

/// Takes the screen: another one, without cursor, from which nothing scrolls away.
const BEGIN: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";

/// Gives it back.
const END: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// Goes to the upper left; and clears to the end of a line, and of the screen.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_REST: &str = "\x1b[J";

/// Words of warning stand out; and end.
const STRONG: &str = "\x1b[7m";
const PLAIN: &str = "\x1b[0m";

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    asked: Asked,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// End after so many looks
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// The time between two looks, as 500ms, 2s
    #[arg(long, default_value = "1s", value_parser = pause)]
    every: Duration,
}

fn pause(text: &str) -> Result<Duration, String> {
    let pause = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match pause >= Duration::from_millis(100) {
        true => Ok(pause),
        false => Err("at least 100ms".to_owned()),
    }
}

/// Shows the status until somebody ends it, or `--count` is reached.
pub(super) async fn top(options: &Options) -> Result<(), Failure> {
    let address = options.asked.address()?;
    let is_screen = io::stdout().is_terminal() && !options.json;
    let mut signals = Signals::listen()?;
    let mut resized = listen(SignalKind::window_change())?;
    let mut screen = match is_screen {
        true => Some(Screen::take()?),
        false => None,
    };
    let mut looks = interval(options.every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut done = 0;
    // The first that is not answered is an error; later ones may be a restart.
    let mut failure = None;
    let mut last = None;
    while options.count.is_none_or(|count| done < count) {
        let is_look = tokio::select! {
            _ = looks.tick() => true,
            () = signals.end() => break,
            () = Screen::left(&mut screen) => break,
            _ = resized.recv(), if is_screen => false,
        };
        if is_look {
            // An agent that does not answer keeps nobody from leaving.
            let answer = tokio::select! {
                answer = ask(address) => answer,
                () = signals.end() => break,
                () = Screen::left(&mut screen) => break,
            };
            done += 1;
            if done == 1 && answer.is_err() && screen.is_none() {
                return answer.map(drop);
            }
            failure = answer.as_ref().err().map(ToString::to_string);
            last = Some(answer);
        }
        let Some(answer) = &last else { continue };
        match &mut screen {
            Some(screen) => screen.draw(&page(answer, address))?,
            // Ends with its reader.
            None => print(&match options.json {
                true => as_json(answer)?,
                false => as_line(answer),
            }),
        }
    }
    drop(screen);
    match failure {
        None => Ok(()),
        Some(reason) => {
            Err(Failure::new(Class::Network, "get the last status")
                .because(io::Error::other(reason)))
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::new(Class::Overload, "handle signals").because(error))
}

/// Those that ask to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// The terminal, taken over: dropping it gives it back as it was.
struct Screen {
    /// The modes before; `None` where nothing can be typed.
    modes: Option<Termios>,
    keys: mpsc::Receiver<()>,
}

impl Screen {
    fn take() -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::new(Class::Overload, "take over the terminal")
                .because(error)
                .help("edge-agent top --json | cat prints lines instead")
        };
        let (typed, keys) = mpsc::channel(1);
        let stdin = io::stdin();
        let modes = match stdin.is_terminal() {
            false => None,
            true => {
                let before = termios::tcgetattr(&stdin).map_err(|error| failed(error.into()))?;
                let mut raw = before.clone();
                // Keys come one by one and are not shown; Ctrl-C is one of them, Ctrl-Z does nothing.
                raw.local_modes &= !(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
                raw.special_codes[SpecialCodeIndex::VMIN] = 1;
                raw.special_codes[SpecialCodeIndex::VTIME] = 0;
                termios::tcsetattr(&stdin, OptionalActions::Now, &raw)
                    .map_err(|error| failed(error.into()))?;
                // Ends with the process: nothing can make it stop reading.
                std::thread::spawn(move || {
                    for byte in io::stdin().lock().bytes() {
                        match byte {
                            Ok(b'q' | b'Q' | 3 | 4) | Err(_) => break,
                            Ok(_) => {}
                        }
                    }
                    let _ = typed.blocking_send(());
                });
                Some(before)
            }
        };
        let screen = Self { modes, keys };
        write(BEGIN)?;
        Ok(screen)
    }

    /// Returns when a person wants to leave.
    async fn left(screen: &mut Option<Self>) {
        match screen {
            Some(Self {
                modes: Some(_),
                keys,
            }) => {
                keys.recv().await;
            }
            _ => std::future::pending().await,
        }
    }

    fn draw(&mut self, page: &[String]) -> Result<(), Failure> {
        let (columns, rows) = terminal_size().unwrap_or((80, 24));
        let mut shown = String::from(HOME);
        for (at, line) in page.iter().take(rows).enumerate() {
            if at > 0 {
                shown += "\r\n";
            }
            let is_strong = line.starts_with('!');
            let line: String = line
                .trim_start_matches('!')
                .chars()
                .filter(|char| !char.is_control())
                .take(columns)
                .collect();
            match is_strong {
                true => shown += &format!("{STRONG}{line}{PLAIN}{CLEAR_LINE}"),
                false => shown += &format!("{line}{CLEAR_LINE}"),
            }
        }
        shown += CLEAR_REST;
        write(&shown)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write(END);
        if let Some(modes) = &self.modes {
            // What was typed meanwhile is for nobody.
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Flush, modes);
        }
    }
}

fn write(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Failure::new(Class::Storage, "write to the terminal").because(error))
}

/// The screen's lines; those that begin with `!` stand out.
fn page(answer: &Result<Answer, Failure>, address: SocketAddr) -> Vec<String> {
    let status = match answer {
        Ok(Answer::Status(status)) => status,
        Ok(Answer::Starting(reason)) => {
            return vec![
                format!("edge-agent at {address}"),
                format!("!has not started yet: {reason}"),
                "q leaves".to_owned(),
            ];
        }
        Err(failure) => {
            return vec![
                format!("edge-agent at {address}"),
                format!("!does not answer: {failure}"),
                "q leaves".to_owned(),
            ];
        }
    };
    let mut lines = vec![head(status)];
    for wrong in wrong_with(status) {
        lines.push(format!("!{wrong}"));
    }
    lines.push(String::new());
    let mut line = |name: &str, value: String| lines.push(format!("{name:<10}{value}"));
    line("link", link(status));
    if let Some(error) = status
        .link
        .as_ref()
        .and_then(|link| link.last_error.as_ref())
    {
        line("", error.clone());
    }
    line("rates", rates(status));
    let waiting = status.waiting;
    line(
        "backlog",
        format!(
            "{} pending: {} in flight, {} fresh, {} history",
            status.balance.pending, status.in_flight.rows, waiting.fresh, waiting.history
        ),
    );
    if let Some(oldest) = &status.oldest {
        let age = text::duration(Duration::from_millis(oldest.age_ms));
        line("", format!("the oldest is {age} old"));
    }
    let balance = &status.balance;
    line(
        "ledger",
        format!(
            "{} accepted, {} committed",
            balance.accepted, balance.committed
        ),
    );
    line(
        "",
        format!(
            "{} quarantined, {} evicted, {} discarded",
            balance.quarantined, balance.evicted, balance.discarded
        ),
    );
    if let Some(room) = &status.room {
        let share = 100.0 * room.rows as f64 / room.rows_max.max(1) as f64;
        let disk = status.files.map_or_else(String::new, |files| {
            format!(
                ", {} on disk, {} left",
                text::bytes(files.file_bytes + files.log_bytes),
                text::bytes(files.disk_free_bytes)
            )
        });
        line("buffer", format!("{share:.1} % full{disk}"));
    }
    if let Some(trouble) = &status.storage.trouble {
        line("", format!("{}; {}", trouble.what, trouble.help));
    }
    let clock = &status.clock;
    let offset = clock
        .offset_ms
        .map_or_else(String::new, |offset| format!(", {offset:+} ms"));
    line("clock", format!("{}{offset}", clock.state.as_str()));
    lines.push(String::new());
    lines.push(format!(
        "{:<20} {:<8} {:<10} {:>10}  LAST",
        "SOURCE", "STATE", "KIND", "ACCEPTED"
    ));
    for (name, source) in &status.sources {
        let last = source.last_reading_ms.map_or_else(String::new, time_of_day);
        let is_wrong = matches!(source.state, SourceState::Failing | SourceState::Stalled);
        let error = source.last_error.as_ref().filter(|_| is_wrong);
        lines.push(format!(
            "{}{name:<20} {:<8} {:<10} {:>10}  {last}",
            if is_wrong { "!" } else { "" },
            source.state.as_str(),
            source.kind,
            source.readings.accepted,
        ));
        if let Some(error) = error {
            lines.push(format!("  {error}"));
        }
    }
    lines
}

fn head(status: &Status) -> String {
    let up = status.started_ms.map_or_else(String::new, |at| {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let up = now.saturating_sub(Duration::from_millis(at));
        format!(", up {}", text::duration(up))
    });
    format!(
        "{}  edge-agent {}{up}   q leaves",
        status.device, status.version
    )
}

fn link(status: &Status) -> String {
    let state = if status.connected { "up" } else { "down" };
    let link = status.link.as_ref().map_or_else(String::new, |link| {
        format!(" since {}, {}", time_of_day(link.since_ms), link.broker)
    });
    let latency = status
        .ack_latency_seconds
        .map_or_else(String::new, |seconds| {
            format!(", round trip {:.0} ms", seconds * 1000.0)
        });
    format!("{state}{link}{latency}")
}

fn rates(status: &Status) -> String {
    status
        .rates
        .as_ref()
        .map_or_else(|| "not known yet".to_owned(), ToString::to_string)
}

/// A moment, without its day and parts of seconds.
fn time_of_day(ms: u64) -> String {
    let micros = i64::try_from(ms / 1000)
        .unwrap_or(0)
        .saturating_mul(1_000_000);
    let text = rfc3339(micros);
    text.split_once('T')
        .map_or(text.clone(), |(_, time)| time.to_owned())
}

fn as_line(answer: &Result<Answer, Failure>) -> String {
    match answer {
        Ok(Answer::Status(status)) => {
            let wrong = wrong_with(status);
            let wrong = match wrong.is_empty() {
                true => String::new(),
                false => format!("; {}", wrong.join(", ")),
            };
            format!(
                "{}: {}; {}; {} pending, {} committed{wrong}",
                status.device,
                link(status),
                rates(status),
                status.balance.pending,
                status.balance.committed
            )
        }
        Ok(Answer::Starting(reason)) => format!("has not started yet: {reason}"),
        Err(failure) => format!("does not answer: {failure}"),
    }
}

fn as_json(answer: &Result<Answer, Failure>) -> Result<String, Failure> {
    let value = match answer {
        Ok(Answer::Status(status)) => serde_json::to_string(status),
        Ok(Answer::Starting(reason)) => serde_json::to_string(&serde_json::json!({
            "running": true, "error": reason,
        })),
        Err(failure) => serde_json::to_string(&serde_json::json!({
            "running": false, "error": failure.to_string(),
        })),
    };
    value.map_err(|error| Failure::new(Class::Data, "print the status").because(error))
}
