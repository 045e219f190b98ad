//! The status as `GET /status` gives it: what the driver publishes, with the counts as they are now, and a look at the
//! files. A disk that hangs holds up no answer: what it does not tell in time is left out.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use certs::certificate::Certificate;
use daemon::lock;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::rates::RateLog;
use super::{Files, Oldest, OwnCertificate, Room, Status};
use crate::buffer::Buffer;
use crate::clock::AgentClock;
use crate::link::LinkUse;
use crate::source::Reports;

/// How long a look at the disk may hold up an answer.
const LOOK: Duration = Duration::from_millis(500);

/// What the status is made of.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) buffer: Buffer,
    pub(crate) sources: Reports,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) rates: Arc<Rated>,
    pub(crate) link: LinkUse,
    pub(crate) clock: AgentClock,
    /// The buffer's file, and the certificate's.
    pub(crate) files: Arc<(PathBuf, PathBuf)>,
    /// Held by the one look at the disk that is under way.
    pub(crate) looking: Arc<tokio::sync::Mutex<()>>,
}

/// The counts of the last minute, and where their time starts.
#[derive(Debug)]
pub(crate) struct Rated {
    log: Mutex<RateLog>,
    origin: Instant,
}

/// What only the disk knows.
#[derive(Debug, Default)]
struct Looked {
    oldest: Option<Oldest>,
    files: Option<Files>,
    certificate: Option<OwnCertificate>,
}

impl Rated {
    pub(crate) fn new() -> Self {
        Self {
            log: Mutex::default(),
            origin: Instant::now(),
        }
    }

    /// Notes the counts of readings accepted and committed.
    pub(crate) fn note(&self, counts: (u64, u64)) {
        lock(&self.log).note(self.origin.elapsed(), counts);
    }
}

impl Served {
    /// The status with the counts as they are now.
    pub(crate) fn now(&self) -> Status {
        let status = self.status.borrow().clone();
        let progress = self.buffer.progress();
        let traffic = self.link.status(progress.balance.committed);
        Status {
            balance: progress.balance,
            current: progress.current,
            quarantine: progress.quarantine(),
            sources: self
                .sources
                .all()
                .iter()
                .map(|report| (report.name.to_string(), report.status()))
                .collect(),
            filling: progress.is_filling,
            evicted_by: progress.evicted_by(),
            traffic,
            storage: self.buffer.storage().borrow().clone(),
            room: status.room.map(|room| Room {
                rows: progress.balance.pending,
                bytes: progress.bytes,
                ..room
            }),
            rates: lock(&self.rates.log).rates(self.rates.origin.elapsed()),
            ..status
        }
    }

    /// As [`Self::now`], with what only the disk knows.
    async fn looked(&self) -> Status {
        let status = self.now();
        let looked = timeout(LOOK, self.look()).await.unwrap_or_default();
        Status {
            oldest: looked.oldest,
            files: looked.files,
            certificate: looked.certificate,
            ..status
        }
    }

    async fn look(&self) -> Looked {
        // One at a time, also where the disk never answers: others go without.
        let turn = Arc::clone(&self.looking).lock_owned().await;
        let (buffer, paths) = (self.buffer.clone(), Arc::clone(&self.files));
        let now_ms = self.clock.wall_ms();
        let look = tokio::spawn(async move {
            let _turn = turn;
            let files = tokio::task::spawn_blocking(move || {
                let (buffer, certificate) = &*paths;
                (Files::of(buffer), OwnCertificate::read(certificate, now_ms))
            });
            let oldest = buffer.oldest().await.ok().flatten();
            let (files, certificate) = files.await.unwrap_or_default();
            Looked {
                oldest,
                files,
                certificate,
            }
        });
        look.await.unwrap_or_default()
    }
}

pub(crate) async fn serve(State(served): State<Served>) -> Json<Status> {
    Json(served.looked().await)
}

impl Files {
    /// What the buffer's files take, and what is left on their disk.
    pub(crate) fn of(buffer: &Path) -> Option<Self> {
        let bytes = |path: &Path| path.metadata().map(|found| found.len()).unwrap_or(0);
        let mut log = buffer.as_os_str().to_owned();
        log.push("-wal");
        Some(Self {
            file_bytes: buffer.metadata().ok()?.len(),
            log_bytes: bytes(Path::new(&log)),
            disk_free_bytes: crate::place::free_bytes(buffer).unwrap_or(0),
        })
    }
}

impl OwnCertificate {
    fn read(path: &Path, now_ms: i64) -> Option<Self> {
        let certificate = Certificate::read(path).ok()?;
        let ms = |at: time::OffsetDateTime| at.unix_timestamp().saturating_mul(1000);
        let (from, until) = (
            ms(certificate.validity.not_before),
            ms(certificate.validity.not_after),
        );
        Some(Self {
            expires_ms: until,
            is_valid: (from..=until).contains(&now_ms),
        })
    }
}
