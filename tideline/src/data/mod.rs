//! `tideline data`: readings out of the database, and into it.

mod get;
mod send;

use api::conflicts::{ConflictBody, ListConflicts};
use api::telemetry::{BucketBody, OfBuckets, ReadingBody, ShowLatest, SumUpReadings};
use api::{Endpoint as _, OfDevice, Time};
use clap::{Args, Subcommand};
use schema::{DeviceId, SensorName};

use crate::client::Pages;
use crate::moment::{Moment, moment};
use crate::output::{Column, instant, plain};
use crate::session::{Outcome, Session};

/// What readings show.
const READING: [Column<ReadingBody>; 5] = [
    Column::new("OBSERVED", |reading| plain(&reading.observed_at)),
    Column::new("SENSOR", |reading| plain(reading.sensor.as_str())),
    Column::new("VALUE", |reading| plain(&reading.value)),
    Column::new("QUALITY", |reading| plain(reading.quality.as_str())),
    Column::new("RECEIVED", |reading| instant(&reading.received_at)),
];

/// And where it is asked for.
const UNIT: Column<ReadingBody> = Column::new("UNIT", |reading| plain(&reading.unit));

/// What aggregates show.
const BUCKET: [Column<BucketBody>; 7] = [
    Column::new("FROM", |bucket| instant(&bucket.start)),
    Column::new("COUNT", |bucket| plain(&bucket.count)),
    Column::new("MIN", |bucket| plain(&bucket.min)),
    Column::new("MEAN", |bucket| plain(&bucket.mean)),
    Column::new("MAX", |bucket| plain(&bucket.max)),
    Column::new("FIRST", |bucket| plain(&bucket.first)),
    Column::new("LAST", |bucket| plain(&bucket.last)),
];

/// What conflicts show.
const CONFLICT: [Column<ConflictBody>; 6] = [
    Column::new("OBSERVED", |found| plain(&found.loser.observed_at)),
    Column::new("SENSOR", |found| plain(found.loser.sensor.as_str())),
    Column::new("LOST", |found| plain(&found.loser.value)),
    Column::new("OF BUFFER", |found| plain(&found.loser.epoch)),
    Column::new("AGAINST", |found| plain(&found.winner.epoch)),
    Column::new("RECORDED", |found| instant(&found.recorded_at)),
];

/// Readings of devices.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  \
                  tideline data latest press-7\n  \
                  tideline data get press-7 --sensor temperature --from -1h\n  \
                  tideline data get press-7 --from 2026-01-31T00:00:00Z --format csv -o january.csv --limit 1000000\n  \
                  tideline data aggregate press-7 --sensor temperature --from -1day --bucket 1h\n  \
                  tideline data send press-7 readings.json\n\n\
                  Times are RFC 3339 (2026-01-31T08:00:00Z), `now`, or so long ago (-1h, -30m, -7days).\n\n\
                  Exit codes: 0 done, 1 the bridge refuses or does not answer, 2 wrong arguments."
)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Readings as they were taken
    #[command(after_help = "Examples:\n  \
                            tideline data get press-7 --order newest --limit 10\n  \
                            tideline data get press-7 --from -1day --format arrow -o day.arrow")]
    Get(get::Get),
    /// The latest reading of each sensor
    Latest {
        /// The device
        device: DeviceId,
    },
    /// Least, most and mean of one sensor, over equal spans of time
    #[command(
        after_help = "Example:\n  tideline data aggregate press-7 --sensor temperature --from -6h --bucket 10m"
    )]
    Aggregate {
        /// The device
        device: DeviceId,
        /// The sensor
        #[arg(long, value_name = "NAME")]
        sensor: SensorName,
        #[command(flatten)]
        span: Span,
        /// How much time goes together, as in 10s, 1m, 1h, 1d
        #[arg(long, value_name = "TIME", default_value = "1m")]
        bucket: String,
        /// How many spans at most
        #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
    },
    /// Hand in readings of a device that does not speak MQTT
    #[command(after_help = send::HELP)]
    Send(send::Send),
    /// Versions of readings that lost against others
    Conflicts {
        /// The device
        device: DeviceId,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
    },
}

/// From when to when.
#[derive(Debug, Args)]
struct Span {
    /// Not before this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = moment)]
    from: Option<Moment>,
    /// Before this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = moment)]
    to: Option<Moment>,
}

/// Asks the bridge.
pub(crate) async fn run(options: &Options, session: &mut Session) -> Outcome {
    match &options.action {
        Action::Get(get) => get::run(get, session).await,
        Action::Latest { device } => {
            let latest = ShowLatest::at(of(device));
            session.list(Pages::whole(latest), &READING).await
        }
        Action::Aggregate {
            device,
            sensor,
            span,
            bucket,
            limit,
        } => {
            let (from, to) = span.times();
            let sums = SumUpReadings::at(of(device)).query(OfBuckets {
                sensor: sensor.to_string(),
                bucket: bucket.clone(),
                from,
                to,
                ..OfBuckets::default()
            });
            session
                .list(Pages::new(sums, *limit as usize), &BUCKET)
                .await
        }
        Action::Send(send) => send::run(send, session).await,
        Action::Conflicts { device, limit } => {
            let conflicts = ListConflicts::at(of(device));
            let pages = Pages::large(conflicts, *limit as usize);
            session.list(pages, &CONFLICT).await
        }
    }
}

fn of(device: &DeviceId) -> OfDevice {
    OfDevice {
        device: device.clone(),
    }
}

impl Span {
    fn times(&self) -> (Option<Time>, Option<Time>) {
        (self.from.map(Moment::time), self.to.map(Moment::time))
    }
}
