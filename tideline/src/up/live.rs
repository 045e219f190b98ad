//! What `up` prints while it runs: where everything is, and one line that stays current.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use bridge::ingest::Counters;
use daemon::stdout;
use edge_agent::status::Status;
use schema::DeviceId;

use super::data_dir::Endpoints;

/// How often a line is printed where it cannot be overwritten.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// The live line.
#[derive(Debug)]
pub(super) struct Live {
    silent: bool,
    terminal: bool,
    last: Option<Instant>,
    /// Whether the buffer failed when that was last said.
    failed: bool,
}

impl Live {
    /// Prints where everything is; to standard error when standard output is for a program.
    pub(super) fn start(silent: bool, device: &DeviceId, endpoints: &Endpoints<'_>) -> Self {
        let mut text = format!(
            "Tideline is up.\n  \
             REST API  {}/api/v1/devices, described at {}/docs\n  \
             ledger    {}/api/v1/devices/{device}/ledger\n  \
             broker    {} (MQTT, TLS 1.3, client certificates)\n  \
             watch     mosquitto_sub -h {} -p {} --cafile {} --cert {} --key {} -t 'tl/v1/#' -F '%t %x' | tideline decode",
            endpoints.http,
            endpoints.http,
            endpoints.http,
            endpoints.mqtt,
            endpoints.mqtt.ip(),
            endpoints.mqtt.port(),
            endpoints.ca.display(),
            endpoints.observer_cert.display(),
            endpoints.observer_key.display(),
        );
        if let Some(keys) = endpoints.token_keys {
            let keys = keys.display();
            text += &format!(
                "\n  token     tideline token issue --keys {keys} --subject NAME --role admin"
            );
        }
        let mut live = Self {
            silent,
            terminal: std::io::stdout().is_terminal(),
            last: None,
            failed: false,
        };
        if silent {
            eprintln!("{text}");
        } else {
            live.print(&format!("{text}\n"));
        }
        live
    }

    /// Says how things stand.
    pub(super) fn tell(&mut self, agent: &Status, bridge: &Counters) {
        let fails = agent.storage.trouble.is_some();
        // What changes for the worse, or back, is said at once.
        let is_news = std::mem::replace(&mut self.failed, fails) != fails;
        let due = is_news || self.last.is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if self.silent || !(self.terminal || due) {
            return;
        }
        self.last = Some(Instant::now());
        let latency = match agent.ack_latency_seconds {
            Some(seconds) => format!("{:.0} ms", 1000.0 * seconds),
            None => "-".to_owned(),
        };
        let mut line = format!(
            "accepted {}  committed {}  pending {}  quarantined {}  evicted {}  discarded {}  \
             last write {:.1} ms  source to database {latency}",
            agent.balance.accepted,
            agent.balance.committed,
            agent.balance.pending,
            agent.balance.quarantined,
            agent.balance.evicted,
            agent.balance.discarded,
            bridge.last_write_micros as f64 / 1000.0,
        );
        if let Some(trouble) = &agent.storage.trouble {
            line = format!("BUFFER FAILS: {trouble}  {line}");
        }
        if self.terminal {
            // Back to the start of the line, and away with what is left of the last one.
            self.print(&format!("\r{line}\x1b[K"));
        } else {
            self.print(&format!("{line}\n"));
        }
    }

    /// Leaves the line as it is.
    pub(super) fn end(&mut self) {
        if !self.silent && self.terminal {
            self.print("\n");
        }
    }

    /// What cannot be shown stops nothing: it is said once, and no more is shown.
    fn print(&mut self, text: &str) {
        if let Err(failure) = stdout::try_print_bytes(text.as_bytes()) {
            let _ = failure.report();
            self.silent = true;
        }
    }
}
