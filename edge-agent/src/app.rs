//! The agent put together: buffer, session, link and sources; how it starts, drains and stops.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use daemon::settings::Effective;
use daemon::{Clock, Component, Failure, Fault, Health, Lifecycle};
use prometheus_client::registry::Registry;
use schema::message::CommandId;
use schema::{Balance, SeqRange};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, error, info, info_span, warn};

use crate::buffer::{Buffer, BufferError, BufferSettings, Opened, Trouble};
use crate::clock::{AgentClock, Machine};
use crate::commands::Commands;
use crate::commands::restart::Restart;
use crate::commands::work::{SendRequest, Tools, Workshop};
use crate::config::{Config, Settings};
use crate::driver::{Driver, LinkControl};
use crate::ingest::Ingest;
use crate::link::{Link, LinkCollector, LinkMeters, LinkUse, PUBLISHES_MAX, TrafficStatus};
use crate::log_level::LogLevels;
use crate::metrics::{ClockCollector, IngestMeters, LedgerCollector, SessionMeters};
use crate::probes::Probes;
use crate::reload::{Reloaded, Reloading, SettingsStatus, millis};
use crate::sensors::{self, SensorRule, Sensors};
use crate::session::{Session, SessionConfig};
use crate::source::{Controls, Running, Scans, SourceCollector};
use crate::status::served::{self, Rated, Served};
use crate::status::{InFlight, LinkStatus, Room, Status, Waiting};
use crate::twin::knobs::{FromFile, Knobs};
use crate::twin::{self, Twin};
use crate::upkeep;
use crate::watchdog::Watched;

/// Requests to the driver that may wait.
const SEND_REQUESTS_QUEUE: usize = 16;

/// Beside a full window, the link has room for reports, events and presence.
const _: () = assert!(SessionConfig::WINDOW_BATCHES_MAX + 16 <= PUBLISHES_MAX as usize);

/// How long a start waits for somebody who has the buffer only for a moment: the command line, when
/// it changes a setting.
const IN_USE_GRACE: Duration = Duration::from_secs(2);

/// Pause before the buffer is tried again then.
const IN_USE_PAUSE: Duration = Duration::from_millis(50);

/// The first and the longest pause before a buffer whose disk failed is opened again. A recovery
/// reads the whole file each time.
const OPEN_PAUSE_FIRST: Duration = Duration::from_secs(1);
const OPEN_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long a start waits for sources that listen: longer only where something is wrong.
const LISTENING: Duration = Duration::from_millis(500);

/// How long the buffer stays open for what sources say at their end: longer than one is waited for.
const LAST_WORDS: Duration = Duration::from_millis(2_500);

/// Starts agents.
#[derive(Debug)]
pub struct Agent;

/// An agent that runs. Dropping it changes nothing: the lifecycle stops it.
#[derive(Debug)]
pub struct RunningAgent {
    buffer: Buffer,
    ingest: Ingest,
    served: Served,
    sending: mpsc::Sender<SendRequest>,
    twin: mpsc::Sender<twin::Request>,
    reloading: Arc<Reloading>,
    restart: Option<Restart>,
    intake: CancellationToken,
}

impl Agent {
    /// Opens the buffer, starts the configured sources, and connects.
    ///
    /// # Errors
    /// A [`Failure`] when the buffer cannot be opened. A source that cannot start is none, it is tried again; nor is
    /// a broker that cannot be reached: readings are kept until it can.
    pub async fn start(
        config: Config,
        lifecycle: &Lifecycle,
        health: &Health,
        registry: &mut Registry,
    ) -> Result<RunningAgent, Failure> {
        let knobs = knobs(&config);
        let scans = Scans::default();
        let host = Controls {
            interval: knobs.host_interval.subscribe(),
            dead_band: Some(knobs.host_dead_band.subscribe()),
            scans: None,
        };
        certs::tls::install_crypto_provider();
        let clock = AgentClock::begin(Machine::new(config.clock.clone()));
        let stamps = clock.stamps();
        let buffer_health = health.component("agent-buffer");
        // A program that runs the agent inside itself gets the error at once.
        let may_wait = config.own_process.is_some();
        let opened = open_patiently(&config.buffer, &clock, may_wait, &buffer_health);
        let opened = opened.await.map_err(|error| {
            let what = format!("open the buffer {}", config.buffer.path.display());
            let help = error.help();
            Failure::new(error.class(), what).because(error).help(help)
        })?;
        let buffer = opened.buffer;
        if let Some(earlier) = &opened.starts.newest {
            let _ = clock.resume(earlier);
        }
        // What an earlier start took while it did not know the time goes when it is known; with it
        // everything behind it.
        let behind = opened.last_row + 1;
        let held_from = match opened.starts.held_from {
            None if !clock.is_known() => Some(behind),
            None => match buffer.release(Vec::new(), clock.start(), false).await {
                Ok(()) => None,
                // What comes waits until it can be kept; the driver tries again.
                Err(error) if error.fault() == Fault::Retry => {
                    warn!(%error, "what is known of the clock is not kept");
                    Some(behind)
                }
                Err(error) => {
                    let failure = Failure::new(error.class(), "keep what is known of the clock");
                    return Err(failure.because(error));
                }
            },
            from => from,
        };
        let offered_to = held_from.map_or(opened.last_row, |from| from - 1);
        let offered = SeqRange::new(1, offered_to).into_iter().collect();
        let pending = opened.pending.intersection(&offered);
        if let Some(recovery) = &opened.recovery {
            warn!(
                damage = recovery.damage,
                kept_as = %recovery.kept_as.display(),
                salvaged = recovery.salvaged,
                missing = recovery.missing,
                "the buffer was damaged; what could be read is in a new one"
            );
        }
        let balance = buffer.balance();
        let first = config.link.brokers.first();
        let broker = first.map_or_else(String::new, ToString::to_string);
        info!(
            device = %config.link.device,
            epoch = %opened.epoch,
            pending = balance.pending,
            broker,
            "agent started"
        );

        let sensors = declared(&buffer, config.sensors.clone()).await;
        let intake = CancellationToken::new();
        let ingest = Ingest::new(
            buffer.clone(),
            Arc::clone(&stamps),
            sensors.clone(),
            IngestMeters::register(registry),
            intake.clone(),
        );
        let running = Running::new(
            ingest.clone(),
            lifecycle.clone(),
            intake.clone(),
            host,
            scans.clone(),
        );
        let running = Arc::new(running);
        registry.register_collector(Box::new(SourceCollector(running.reports())));
        let reported = clock.clone();
        registry.register_collector(Box::new(ClockCollector(move || reported.report())));
        let counted = buffer.clone();
        registry.register_collector(Box::new(LedgerCollector(move || counted.progress())));

        let (link_meters, meters) = (
            LinkMeters::register(registry),
            SessionMeters::register(registry),
        );
        let shown = LinkUse::new(
            link_meters.clone(),
            config.link.proxy.as_ref().map(ToString::to_string),
            meters.rows.clone(),
        );
        registry.register_collector(Box::new(LinkCollector(shown.clone())));
        let (link, received) = Link::new(
            config.link.clone(),
            buffer.epochs(),
            clock.servers(),
            link_meters,
        );
        let started_ms = clock.wall_ms().max(0).unsigned_abs();
        let rates = Arc::new(Rated::new());
        let (status, status_receiver) = watch::channel(Status {
            device: config.link.device.clone(),
            epoch: opened.epoch,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            connected: false,
            balance,
            current: Balance::default(),
            quarantine: BTreeMap::new(),
            next_probe: None,
            in_flight: InFlight::default(),
            waiting: Waiting::default(),
            clock: clock.report(),
            ack_latency_seconds: None,
            last_error: None,
            sources: BTreeMap::new(),
            traffic: TrafficStatus::default(),
            storage: buffer.storage().borrow().clone(),
            started_ms: Some(started_ms),
            link: Some(LinkStatus {
                broker,
                since_ms: started_ms,
                last_error: None,
                help: None,
            }),
            rates: None,
            oldest: None,
            files: None,
            certificate: None,
            room: Some(Room {
                rows: balance.pending,
                rows_max: config.buffer.rows_max,
                bytes: 0,
                bytes_max: config.buffer.bytes_max,
            }),
            settings: Some(SettingsStatus {
                read_at_ms: millis(clock.wall_ms()),
                ..SettingsStatus::default()
            }),
            filling: false,
            evicted_by: BTreeMap::new(),
        });
        let (sending, send_requests) = mpsc::channel(SEND_REQUESTS_QUEUE);
        let (twin_requests, requests) = mpsc::channel(twin::REQUESTS_QUEUE);
        let reloading = Arc::new(Reloading {
            running: Arc::clone(&running),
            buffer: buffer.clone(),
            clock: clock.clone(),
            twin: twin_requests.clone(),
            status: status.clone(),
            now: Mutex::default(),
        });
        let restart = config
            .own_process
            .as_ref()
            .map(|_| Restart::new(lifecycle.clone()));
        let tools = Tools {
            scans,
            twin: Some(twin_requests.clone()),
            log_levels: Some(knobs.log_level.clone()),
            restart: restart.clone(),
            restarted_for: config
                .own_process
                .as_ref()
                .and_then(|process| process.restarted_for),
            progress: None,
            endings: TaskTracker::new(),
        };
        let (log_level, tuning) = (knobs.log_level.clone(), knobs.session.subscribe());
        let commands = Commands {
            buffer: buffer.clone(),
            clock: clock.clone(),
            link: received.state.clone(),
            instructions: received.instructions,
            workshop: Workshop {
                buffer: buffer.clone(),
                sending: sending.clone(),
                programs: Arc::new(config.commands.exec.clone()),
                tools,
            },
            parallel: knobs.commands_parallel.subscribe(),
            stop: lifecycle.token(),
        };
        let twin = Twin {
            buffer: buffer.clone(),
            clock: Arc::new(clock.clone()),
            link: received.state.clone(),
            documents: received.documents,
            requests,
            knobs,
            stop: lifecycle.token(),
        };
        let served_clock = clock.clone();
        let (protocol, protocol_receiver) = watch::channel(None);
        let (noted_sensors, answers) = mpsc::channel(sensors::ANSWERS_QUEUE);
        let sender = sensors::Sender {
            sensors,
            buffer: buffer.clone(),
            clock: clock.clone(),
            link: received.state.clone(),
            protocol: protocol_receiver,
            answers,
            stop: lifecycle.token(),
        };
        let driver = Driver {
            session: Session::new(config.session.clone(), opened.epoch, offered_to, pending),
            starts: opened.starts,
            is_held: held_from.is_some(),
            is_bridge_new: opened.bridge_protocol > 0,
            probes: Probes::new(config.probes),
            buffer: buffer.clone(),
            clock,
            link_state: received.state,
            downlinks: received.downlinks,
            link_stop: received.stop,
            link_control: LinkControl {
                rules: config.link_rules.clone(),
                shown: shown.clone(),
                closed: received.closed,
            },
            protocol,
            noted_sensors,
            requests: send_requests,
            tuning,
            status,
            meters,
            rates: Arc::clone(&rates),
            link_health: health.component("agent-link"),
            buffer_health,
            stop: lifecycle.token(),
        };
        let span = info_span!("agent", device = %config.link.device);
        let linking = async move {
            link.run().await;
            Ok(())
        };
        lifecycle.spawn("log level", log_level.run(lifecycle.token()));
        lifecycle.spawn("twin", twin.run().instrument(span.clone()));
        lifecycle.spawn("commands", commands.run().instrument(span.clone()));
        lifecycle.spawn("sensors", sender.run().instrument(span.clone()));
        let closing = buffer.clone();
        let (last_words, stopping) = (running.last_words(), lifecycle.token());
        let driving = async move {
            let outcome = driver.run().await;
            // What sources say last goes to disk. One that failed ends the agent first.
            if stopping.is_cancelled() {
                last_words.close();
                let _ = timeout(LAST_WORDS, last_words.wait()).await;
            }
            closing.close().await;
            outcome
        };
        lifecycle.spawn("session", driving.instrument(span.clone()));
        running.become_these(config.sources).await;
        // Whoever sees the device online finds its sockets there.
        let _ = timeout(LISTENING, running.listening()).await;
        lifecycle.spawn("link", linking.instrument(span));
        let served = Served {
            buffer: buffer.clone(),
            sources: running.reports(),
            status: status_receiver,
            rates,
            link: shown,
            clock: served_clock,
            files: Arc::new((config.buffer.path, config.link.tls.cert)),
            looking: Arc::default(),
        };
        Ok(RunningAgent {
            buffer,
            ingest,
            served,
            sending,
            twin: twin_requests,
            reloading,
            restart,
            intake,
        })
    }
}

impl RunningAgent {
    /// Takes readings from code, beside those of the sources.
    #[must_use]
    pub fn ingest(&self) -> Ingest {
        self.ingest.clone()
    }

    /// The ledger's counts at this end.
    #[must_use]
    pub fn balance(&self) -> Balance {
        self.buffer.balance()
    }

    /// The agent's status now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.served.now()
    }

    /// Applies settings of an agent that was started with `at_start`, as far as that can be done while it runs. Sources
    /// that are as they were go on without a gap.
    pub async fn reload(&self, at_start: &Effective, settings: Settings) -> Reloaded {
        self.reloading.apply(at_start, settings).await
    }

    /// Notes, in the log and in the status, that settings cannot be used: nothing is changed.
    pub fn refuse_settings(&self, reason: &str) {
        self.reloading.refuse(reason);
    }

    /// Keeps the buffer's file from growing, as a full disk would: for fault plans.
    #[doc(hidden)]
    pub async fn limit_file_pages(&self, pages_max: u32) {
        // A buffer that has ended needs no limit.
        let _ = self.buffer.limit_file_pages(pages_max).await;
    }

    /// What [`crate::watchdog`] looks at: the buffer, the driver's requests, and the status.
    pub(crate) fn watched(&self) -> Watched {
        Watched {
            buffer: self.buffer.clone(),
            driver: self.sending.clone(),
            status: self.served.status.clone(),
        }
    }

    /// `GET /status` and `/config`, to merge with the admin endpoints.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/status", get(served::serve))
            .with_state(self.served.clone())
            .merge(upkeep::router(self.buffer.clone()))
            .merge(twin::http::router(self.twin.clone()))
    }

    /// The command that wants the process to run itself again, once the agent has ended; the one that
    /// starts then gets it by [`OwnProcess`](crate::OwnProcess).
    #[must_use]
    pub fn restart_wanted(&self) -> Option<CommandId> {
        self.restart.as_ref().and_then(Restart::wanted)
    }

    /// Stops taking readings for good, sends what is there without linger and pace, and waits
    /// until the bridge has acknowledged everything, at most `deadline` long. Returns the counts
    /// then; `pending` is 0 when all of it arrived.
    pub async fn drain(&self, deadline: Duration) -> Balance {
        self.intake.cancel();
        // A driver that is gone has nothing to flush.
        let _ = self.sending.send(SendRequest::Flush(true)).await;
        let mut status = self.served.status.clone();
        let drained = status.wait_for(|_| self.buffer.balance().pending == 0);
        let _ = timeout(deadline, drained).await;
        self.buffer.balance()
    }
}

/// What sensors are, as far as an earlier run has declared them. Without that they are declared again.
async fn declared(buffer: &Buffer, rules: Vec<SensorRule>) -> Sensors {
    let kept = buffer.declarations().await.unwrap_or_else(|error| {
        warn!(%error, "what was declared of sensors cannot be read; it is declared again");
        Vec::new()
    });
    Sensors::new(rules, kept)
}

/// The knobs, set as the settings file says.
fn knobs(config: &Config) -> Knobs {
    let levels = config.own_process.as_ref().map(|own| own.levels.clone());
    let from_file = FromFile::of(&config.sources, &config.session, config.commands.parallel);
    Knobs::new(from_file, LogLevels::new(levels))
}

/// Opens the buffer. A disk that is full or takes nothing may heal: then an agent that `may_wait` reports
/// what is wrong, and tries again, ever more rarely. Nothing of the file is given up meanwhile.
async fn open_patiently(
    settings: &BufferSettings,
    clock: &AgentClock,
    may_wait: bool,
    health: &Component,
) -> Result<Opened, BufferError> {
    let mut pause = OPEN_PAUSE_FIRST;
    loop {
        let error = match open(settings, clock).await {
            Err(error) if may_wait && error.may_heal() => error,
            opened => return opened,
        };
        let trouble = Trouble::of(&error, clock.now_ms());
        error!(
            error = trouble.what,
            help = trouble.help,
            again_in = ?pause,
            "the buffer cannot be opened; no readings are taken until it can"
        );
        health.waiting(trouble.to_string());
        sleep(pause).await;
        pause = (2 * pause).min(OPEN_PAUSE_MAX);
    }
}

/// Opens the buffer, and waits for whoever has it only for a moment.
async fn open(settings: &BufferSettings, clock: &AgentClock) -> Result<Opened, BufferError> {
    let deadline = Instant::now() + IN_USE_GRACE;
    loop {
        match Buffer::open_with(settings.clone(), clock.stamps(), Some(clock.start())).await {
            Err(BufferError::InUse { .. }) if Instant::now() < deadline => {
                sleep(IN_USE_PAUSE).await;
            }
            opened => return opened,
        }
    }
}
