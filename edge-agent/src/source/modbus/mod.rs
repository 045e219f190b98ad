//! The `modbus` source: registers and bits of the devices on one bus, over TCP or a serial line.
//!
//! Reading order: `decode` and `decimal` (registers → value), `plan` (points → requests), `rounds` (what is
//! asked when, and what answers mean), all pure; then `bus` and `serial` (bytes), `settings`, and this file, which
//! drives the rounds.
//!
//! What it does not do: write. A device is never told anything but what to read.

mod bus;
pub mod decimal;
pub mod decode;
pub mod plan;
pub mod rounds;
mod serial;
mod settings;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bus::Bus;
pub use bus::Link;
use daemon::{Class, Failure};
use decode::{Encoding, Kind};
use plan::{Limits, Point};
use rounds::{Moment, Pauses, Rounds, Yield};
use schema::{SensorDeclaration, ValueType};
pub use serial::{Mode8, Parity};
pub use settings::POINTS_MAX;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::config::Section;
use super::{Outlet, Source};
use crate::buffer::Append;

/// Its name as a kind.
pub(super) const KIND: &str = "modbus";

/// The settings of a modbus source.
#[derive(Debug, Clone, PartialEq)]
pub struct ModbusConfig {
    /// Where the devices are.
    pub link: Link,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// Shortest time between an answer and the next request.
    pub pause: Duration,
    /// Before what failed is asked again.
    pub pauses: Pauses,
    /// How far points are read together.
    pub limits: Limits,
    /// What is read.
    pub points: Vec<Point>,
}

/// The `modbus` source.
#[derive(Debug)]
pub struct ModbusSource(ModbusConfig);

/// Reads the section of a source of this kind.
pub(super) fn read(section: &mut Section<'_>) -> Option<Arc<dyn Source>> {
    let config = settings::read(section)?;
    Some(Arc::new(ModbusSource(config)))
}

impl ModbusSource {
    /// A source that reads as configured.
    #[must_use]
    pub const fn new(config: ModbusConfig) -> Self {
        Self(config)
    }

    fn bus(&self) -> Bus {
        let ModbusConfig {
            link,
            timeout,
            pause,
            ..
        } = &self.0;
        Bus::new(link.clone(), *timeout, *pause)
    }
}

#[async_trait]
impl Source for ModbusSource {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn describe(&self) -> String {
        let count = self.0.points.len();
        let noun = if count == 1 { "point" } else { "points" };
        format!("{count} {noun} of {}", self.0.link)
    }

    async fn check(&self) -> Result<String, Failure> {
        match self.bus().connect().await {
            Ok(()) => Ok(self.describe()),
            Err(error) if is_lasting(&error) => Err(Failure::new(
                Class::Configuration,
                format!("open {}", self.0.link),
            )
            .because(error)
            .help(
                "name the device file of the line, and let the agent's user open it: on Debian and Ubuntu \
                 `adduser USER dialout`",
            )),
            // A line that an agent reads at this moment is well; a device that is off now may be on later.
            Err(error) => Ok(format!("{} (not now: {error})", self.describe())),
        }
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        match &self.0.link {
            Link::Serial { path, .. } => vec![("serial", path)],
            Link::Tcp { .. } => Vec::new(),
        }
    }

    async fn run(self: Arc<Self>, outlet: Outlet, stop: CancellationToken) -> Result<(), Failure> {
        let ModbusConfig {
            pauses,
            limits,
            points,
            ..
        } = self.0.clone();
        let mut bus = self.bus();
        for point in &points {
            outlet.declare(&point.sensor, declaration(point));
        }
        let mut rounds = Rounds::new(points, limits, pauses, Instant::now());
        loop {
            let due = rounds.next_due().ok_or_else(|| {
                Failure::new(Class::Configuration, "read registers").because("there are no points")
            })?;
            tokio::select! {
                () = sleep_until(due) => {}
                () = stop.cancelled() => return Ok(()),
            }
            tokio::select! {
                () = round(&mut rounds, &mut bus, &outlet) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }
}

/// What the settings say of a point.
fn declaration(point: &Point) -> SensorDeclaration {
    let value_type = match &point.encoding {
        None => ValueType::Boolean,
        Some(Encoding { kind, scale, .. }) => match kind {
            Kind::Bit(_) => ValueType::Boolean,
            Kind::Text { .. } => ValueType::Text,
            Kind::F32 | Kind::F64 => ValueType::Float,
            _ if scale.is_some() => ValueType::Float,
            Kind::U16 | Kind::I16 | Kind::U32 | Kind::I32 | Kind::U64 | Kind::I64 => {
                ValueType::Integer
            }
        },
    };
    SensorDeclaration {
        unit: point.unit.as_deref().map(str::to_owned),
        value_type: Some(value_type),
        interval_ms: u64::try_from(point.interval.as_millis()).ok(),
        ..SensorDeclaration::default()
    }
}

/// Whether somebody must do something about it.
fn is_lasting(error: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | PermissionDenied)
}

/// Reads what is due, and hands it over.
async fn round(rounds: &mut Rounds, bus: &mut Bus, outlet: &Outlet) {
    let now = || Moment {
        monotonic: Instant::now(),
        wall_micros: outlet.now_micros(),
    };
    rounds.begin(Instant::now());
    while let Some(request) = rounds.next(now()) {
        let answer = bus.ask(request).await;
        debug!(?request, ?answer, "answered");
        rounds.take(answer, now(), rand::random());
    }
    let missed = rounds.missed();
    if missed > 0 {
        debug!(missed, "the bus is slower than the intervals of its points");
    }
    let Yield { readings, refused } = rounds.found();
    for reason in refused {
        outlet.refused(reason, 1);
    }
    let trouble = rounds.trouble();
    outlet.failing_in_part(trouble.as_ref().map(|trouble| trouble as _));
    if !readings.is_empty() {
        // A round that is refused is over: the next one shows how things stand then.
        let outcome = outlet.append(Append::read(readings)).await;
        outlet.note(outcome.map(|outcome| outcome.accepted()));
    }
}
