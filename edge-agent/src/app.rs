//! The agent put together: buffer, session, link and sources; how it starts, drains and stops.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use daemon::{Clock, Component, Failure, Fault, Health, Lifecycle};
use prometheus_client::registry::Registry;
use schema::message::CommandId;
use schema::{Balance, SeqRange};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{Instrument, error, info, info_span, warn};

use crate::buffer::{Buffer, BufferError, BufferSettings, Opened, Trouble};
use crate::clock::{AgentClock, Machine};
use crate::commands::Commands;
use crate::commands::restart::Restart;
use crate::commands::work::{SendRequest, Tools, Workshop};
use crate::config::Config;
use crate::driver::Driver;
use crate::ingest::Ingest;
use crate::link::{Link, LinkMeters, PUBLISHES_MAX};
use crate::log_level::LogLevels;
use crate::metrics::{ClockCollector, IngestMeters, LedgerCollector, SessionMeters};
use crate::probes::Probes;
use crate::sensors::{self, SensorRule, Sensors};
use crate::session::{Session, SessionConfig};
use crate::source::host::{INTERVAL, KIND as HOST};
use crate::source::{self, Controls, Outlet, Report, SCANS_QUEUE, ScanRequest, SourceCollector};
use crate::status::{InFlight, Room, Status, Waiting};
use crate::twin::knobs::{Knob, Knobs};
use crate::twin::{self, Twin};

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
    status: watch::Receiver<Status>,
    sending: mpsc::Sender<SendRequest>,
    twin: mpsc::Sender<twin::Request>,
    sources: Arc<[Arc<Report>]>,
    restart: Option<Restart>,
    intake: CancellationToken,
}

/// The sources, each with its way to the buffer, and how they fare.
struct Sources {
    all: Vec<(Arc<dyn source::Source>, Outlet)>,
    reports: Vec<Arc<Report>>,
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
        let (controls, scans) = host_controls(&config, &knobs);
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
        info!(
            device = %config.link.device,
            epoch = %opened.epoch,
            pending = balance.pending,
            broker = format_args!("{}:{}", config.link.host, config.link.port),
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
        let sources = sources(&config, controls, &ingest);
        registry.register_collector(Box::new(SourceCollector(sources.reports.clone())));
        let reported = clock.clone();
        registry.register_collector(Box::new(ClockCollector(move || reported.report())));
        let counted = buffer.clone();
        registry.register_collector(Box::new(LedgerCollector(move || counted.progress())));

        let (link, received) = Link::new(
            config.link.clone(),
            buffer.epochs(),
            clock.servers(),
            LinkMeters::register(registry),
        );
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
            storage: buffer.storage().borrow().clone(),
            room: Some(Room {
                rows: balance.pending,
                rows_max: config.buffer.rows_max,
                bytes: 0,
                bytes_max: config.buffer.bytes_max,
            }),
            filling: false,
            evicted_by: BTreeMap::new(),
        });
        let (sending, send_requests) = mpsc::channel(SEND_REQUESTS_QUEUE);
        let (twin_requests, requests) = mpsc::channel(twin::REQUESTS_QUEUE);
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
            protocol,
            noted_sensors,
            requests: send_requests,
            tuning,
            status,
            meters: SessionMeters::register(registry),
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
        let running = TaskTracker::new();
        let (last_words, stopping) = (running.clone(), lifecycle.token());
        let driving = async move {
            let outcome = driver.run().await;
            // What sources say last goes to disk. One that failed ends the agent first.
            if stopping.is_cancelled() {
                let _ = timeout(LAST_WORDS, last_words.wait()).await;
            }
            closing.close().await;
            outcome
        };
        lifecycle.spawn("session", driving.instrument(span.clone()));
        let listening: Vec<_> = sources
            .all
            .iter()
            .zip(&sources.reports)
            .filter(|((source, _), _)| source.listens())
            .map(|(_, report)| Arc::clone(report))
            .collect();
        for (source, outlet) in sources.all {
            spawn_source(source, outlet, &intake, running.token(), lifecycle);
        }
        running.close();
        // Whoever sees the device online finds its sockets there.
        let _ = timeout(LISTENING, async {
            for report in listening {
                report.begun().await;
            }
        })
        .await;
        lifecycle.spawn("link", linking.instrument(span));
        Ok(RunningAgent {
            buffer,
            ingest,
            status: status_receiver,
            sending,
            twin: twin_requests,
            sources: sources.reports.into(),
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
        with_counts(&self.buffer, &self.sources, self.status.borrow().clone())
    }

    /// Keeps the buffer's file from growing, as a full disk would: for fault plans.
    #[doc(hidden)]
    pub async fn limit_file_pages(&self, pages_max: u32) {
        // A buffer that has ended needs no limit.
        let _ = self.buffer.limit_file_pages(pages_max).await;
    }

    /// `GET /status` and `/config`, to merge with the admin endpoints.
    pub fn router(&self) -> Router {
        let shown = Shown {
            buffer: self.buffer.clone(),
            sources: Arc::clone(&self.sources),
            status: self.status.clone(),
        };
        Router::new()
            .route("/status", get(serve_status))
            .with_state(shown)
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
        let mut status = self.status.clone();
        let drained = status.wait_for(|_| self.buffer.balance().pending == 0);
        let _ = timeout(deadline, drained).await;
        self.buffer.balance()
    }
}

/// What `/status` is made of.
#[derive(Clone)]
struct Shown {
    buffer: Buffer,
    sources: Arc<[Arc<Report>]>,
    status: watch::Receiver<Status>,
}

async fn serve_status(State(shown): State<Shown>) -> Json<Status> {
    let status = shown.status.borrow().clone();
    Json(with_counts(&shown.buffer, &shown.sources, status))
}

/// The status with the counts as they are now.
fn with_counts(buffer: &Buffer, sources: &[Arc<Report>], status: Status) -> Status {
    let progress = buffer.progress();
    Status {
        balance: progress.balance,
        current: progress.current,
        quarantine: progress.quarantine(),
        sources: sources
            .iter()
            .map(|report| (report.name.to_string(), report.status()))
            .collect(),
        storage: buffer.storage().borrow().clone(),
        room: status.room.map(|room| Room {
            rows: progress.balance.pending,
            bytes: progress.bytes,
            ..room
        }),
        filling: progress.is_filling,
        evicted_by: progress.evicted_by(),
        ..status
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
    let host = config
        .sources
        .iter()
        .find(|source| source.source.kind() == HOST);
    let levels = config.own_process.as_ref().map(|own| own.levels.clone());
    Knobs {
        commands_parallel: Knob::new(config.commands.parallel),
        host_dead_band: Knob::new(host.and_then(|host| host.shaping.dead_band)),
        host_interval: Knob::new(host.and_then(|host| host.interval).unwrap_or(INTERVAL)),
        log_level: LogLevels::new(levels),
        session: Knob::new(config.session.tuning()),
    }
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

/// What of the host source can be set and requested from outside: of the first one, when there are several.
fn host_controls(
    config: &Config,
    knobs: &Knobs,
) -> (Option<Controls>, Option<mpsc::Sender<ScanRequest>>) {
    if !config
        .sources
        .iter()
        .any(|source| source.source.kind() == HOST)
    {
        return (None, None);
    }
    let (scans, requests) = mpsc::channel(SCANS_QUEUE);
    let controls = Controls {
        interval: knobs.host_interval.subscribe(),
        dead_band: Some(knobs.host_dead_band.subscribe()),
        scans: Some(Arc::new(Mutex::new(requests))),
    };
    (Some(controls), Some(scans))
}

fn sources(config: &Config, mut host: Option<Controls>, ingest: &Ingest) -> Sources {
    let mut sources = Sources {
        all: Vec::new(),
        reports: Vec::new(),
    };
    for configured in &config.sources {
        let source = &configured.source;
        let report = Arc::new(Report::new(configured.name.clone(), source.kind()));
        let controls = match source.kind() {
            HOST if host.is_some() => host.take(),
            _ => configured.interval.map(Controls::fixed),
        };
        let outlet = Outlet::new(configured, controls, Arc::clone(&report), ingest.clone());
        sources.all.push((Arc::clone(source), outlet));
        sources.reports.push(report);
    }
    sources
}

/// A source ends with the intake; its task stays until the agent stops, because a task that ends
/// before is taken for a failure.
fn spawn_source(
    source: Arc<dyn source::Source>,
    outlet: Outlet,
    intake: &CancellationToken,
    running: TaskTrackerToken,
    lifecycle: &Lifecycle,
) {
    let stop = intake.clone();
    let whole = lifecycle.clone();
    lifecycle.spawn("source", async move {
        let patience = source::Patience::default();
        let supervised = source::supervise(source, outlet, patience, stop.clone());
        tokio::pin!(supervised);
        tokio::select! {
            () = &mut supervised => whole.stopping().await,
            () = whole.stopping() => {
                stop.cancel();
                supervised.await;
            }
        }
        drop(running);
        Ok(())
    });
}
