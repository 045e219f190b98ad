//! What sensors are, as their devices declare it: one row a sensor, of which the latest version stays (P3). A device has
//! [`DECLARED_SENSORS_MAX`] of them at most; what it declares beyond that is not kept, and it hears so. Two bridges that take
//! its declarations at the same moment may keep as many more as two messages have.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use schema::limits::DECLARED_SENSORS_MAX;
use schema::message::{DeclaredSensor, NotedSensor, SensorNote};
use schema::sensor::Precision;
use schema::time::ReceivedAt;
use schema::{DeviceId, Hlc, SensorDeclaration, SensorName};
use serde_json::{Value, json};

use super::StoreError;
use super::sql::{Access, Broken, Database, Port, Row, all, cells, int8, page_limit, unreadable};

/// How far a version may be ahead of the database's time, in milliseconds: a day, as that of a reading. A device whose
/// clock was ahead declares again once it is right, and must win then.
pub const VERSION_AHEAD_MS_MAX: u64 = 86_400_000;

/// The part of a store that keeps what sensors are.
#[async_trait]
pub trait SensorStore: Send + Sync {
    /// Keeps declarations, each unless one that wins is there, in one commit. Says of each what became of it, in their
    /// order. The statements are as many for many devices as for one.
    async fn declare_sensors(
        &self,
        reports: &[SensorsReport],
    ) -> Result<Vec<Vec<NotedSensor>>, StoreError>;

    /// The sensors of a device that something is declared of, by name in the order of bytes, behind `after`.
    async fn sensors(
        &self,
        device: &DeviceId,
        after: Option<&SensorName>,
        limit: usize,
    ) -> Result<Vec<KeptSensor>, StoreError>;

    /// Those of these sensors that something is declared of.
    async fn sensors_named(
        &self,
        device: &DeviceId,
        names: &[SensorName],
    ) -> Result<Vec<KeptSensor>, StoreError>;
}

/// What a device declares.
#[derive(Debug, Clone, PartialEq)]
pub struct SensorsReport {
    /// The device that declares.
    pub device: DeviceId,
    /// Its sensors.
    pub sensors: Vec<DeclaredSensor>,
    /// When the bridge took it.
    pub received_at: ReceivedAt,
}

/// A declaration as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptSensor {
    /// Which sensor of the device.
    pub sensor: SensorName,
    /// What it is.
    pub declaration: SensorDeclaration,
    /// The version's clock.
    pub version: Hlc,
    /// When a bridge took this version.
    pub declared_at: ReceivedAt,
}

const KNOWN: &str = "SELECT device_id, sensor, hlc, digest FROM sensors \
     WHERE device_id = ANY($1) AND sensor = ANY($2)";

const COUNTS: &str =
    "SELECT device_id, count(*) FROM sensors WHERE device_id = ANY($1) GROUP BY device_id";

const PUT: &str = "INSERT INTO sensors (device_id, sensor, unit, description, value_type, \
         min_value, max_value, decimals, step, interval_ms, hlc, digest, declared_at) \
     SELECT n.value ->> 0, n.value ->> 1, n.value ->> 2, n.value ->> 3, n.value ->> 4, \
         (n.value ->> 5)::FLOAT8, (n.value ->> 6)::FLOAT8, (n.value ->> 7)::INT8, \
         (n.value ->> 8)::FLOAT8, (n.value ->> 9)::INT8, (n.value ->> 10)::INT8, \
         (n.value ->> 11)::INT8, \
         'epoch'::TIMESTAMPTZ + (n.value ->> 12)::INT8 * interval '1 microsecond' \
     FROM jsonb_array_elements($1::TEXT::JSONB) AS n (value) WHERE true \
     ON CONFLICT (device_id, sensor) DO UPDATE SET unit = excluded.unit, \
         description = excluded.description, value_type = excluded.value_type, \
         min_value = excluded.min_value, max_value = excluded.max_value, \
         decimals = excluded.decimals, step = excluded.step, \
         interval_ms = excluded.interval_ms, hlc = excluded.hlc, digest = excluded.digest, \
         declared_at = excluded.declared_at \
     WHERE sensors.hlc < excluded.hlc \
         OR (sensors.hlc = excluded.hlc AND sensors.digest < excluded.digest)";

macro_rules! kept {
    ($rest:literal) => {
        concat!(
            "SELECT sensor, unit, description, value_type, min_value, max_value, decimals, step, \
                 interval_ms, hlc, declared_at FROM sensors WHERE device_id = $1 AND ",
            $rest
        )
    };
}

const PAGE: &str = kept!("sensor > $2 ORDER BY sensor LIMIT $3");

const NAMED: &str = kept!("sensor = ANY($2) ORDER BY sensor");

#[async_trait]
impl<D: Database> SensorStore for D {
    async fn declare_sensors(
        &self,
        reports: &[SensorsReport],
    ) -> Result<Vec<Vec<NotedSensor>>, StoreError> {
        let reports = reports.to_vec();
        self.run(Access::Transaction, reports, |port, reports| {
            Box::pin(declare(port, reports))
        })
        .await
    }

    async fn sensors(
        &self,
        device: &DeviceId,
        after: Option<&SensorName>,
        limit: usize,
    ) -> Result<Vec<KeptSensor>, StoreError> {
        let after = after.map_or("", SensorName::as_str);
        let cells = cells![device, after, page_limit(limit)];
        self.list(Access::Read, PAGE, cells, kept).await
    }

    async fn sensors_named(
        &self,
        device: &DeviceId,
        names: &[SensorName],
    ) -> Result<Vec<KeptSensor>, StoreError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<String> = names.iter().map(SensorName::to_string).collect();
        self.list(Access::ReadStale, NAMED, cells![device, names], kept)
            .await
    }
}

type Of<'r> = (&'r DeviceId, &'r SensorName);

/// What orders two versions of one sensor.
type Rank = (Hlc, i64);

/// A declaration that is to be written.
struct Winner<'r> {
    rank: Rank,
    declared: &'r DeclaredSensor,
    received_at: ReceivedAt,
}

async fn declare(
    port: &mut dyn Port,
    reports: &[SensorsReport],
) -> Result<Vec<Vec<NotedSensor>>, Broken> {
    let known = known(port, reports).await?;
    let has = |of: Of<'_>| {
        let of = (of.0.clone(), of.1.clone());
        known.get(&of).copied()
    };
    let mut winners: BTreeMap<Of<'_>, Winner<'_>> = BTreeMap::new();
    let mut fresh: BTreeSet<&DeviceId> = BTreeSet::new();
    for (report, declared) in each(reports) {
        let of = (&report.device, &declared.sensor);
        let rank = (declared.version, declared.declaration.digest());
        let held = has(of);
        if is_too_new(report, declared) || held.is_some_and(|held| held >= rank) {
            continue;
        }
        if held.is_none() {
            fresh.insert(&report.device);
        }
        let winner = Winner {
            rank,
            declared,
            received_at: report.received_at,
        };
        match winners.entry(of) {
            Entry::Vacant(place) => drop(place.insert(winner)),
            Entry::Occupied(mut best) => {
                if best.get().rank < rank {
                    best.insert(winner);
                }
            }
        }
    }
    let mut room = room(port, &fresh).await?;
    winners.retain(|of, _| {
        if has(*of).is_some() {
            return true;
        }
        let left = room.entry(of.0.clone()).or_insert(DECLARED_SENSORS_MAX);
        let fits = *left > 0;
        *left = left.saturating_sub(1);
        fits
    });
    if !winners.is_empty() {
        let rows: Vec<Value> = winners
            .iter()
            .map(|(of, winner)| row(*of, winner))
            .collect();
        let rows = Value::from(rows).to_string();
        port.execute(PUT, cells![rows]).await?;
    }
    let note = |report: &SensorsReport, declared: &DeclaredSensor| {
        let of = (&report.device, &declared.sensor);
        let now = winners
            .get(&of)
            .map(|winner| winner.rank)
            .or_else(|| has(of));
        let (version, note) = match now {
            _ if is_too_new(report, declared) => (declared.version, SensorNote::TooNew),
            Some((version, _)) => (version, SensorNote::Kept),
            None => (declared.version, SensorNote::Full),
        };
        NotedSensor {
            sensor: declared.sensor.clone(),
            version,
            note,
        }
    };
    let notes = reports.iter().map(|report| {
        let sensors = report.sensors.iter();
        sensors.map(|declared| note(report, declared)).collect()
    });
    Ok(notes.collect())
}

fn each(reports: &[SensorsReport]) -> impl Iterator<Item = (&SensorsReport, &DeclaredSensor)> {
    reports.iter().flat_map(|report| {
        let sensors = report.sensors.iter();
        sensors.map(move |declared| (report, declared))
    })
}

fn is_too_new(report: &SensorsReport, declared: &DeclaredSensor) -> bool {
    let now_ms = u64::try_from(report.received_at.micros() / 1000).unwrap_or(0);
    declared.version.millis() > now_ms.saturating_add(VERSION_AHEAD_MS_MAX)
}

/// What there is of the sensors that reports name.
async fn known(
    port: &mut dyn Port,
    reports: &[SensorsReport],
) -> Result<BTreeMap<(DeviceId, SensorName), Rank>, Broken> {
    let devices: BTreeSet<&DeviceId> = reports.iter().map(|report| &report.device).collect();
    let names: BTreeSet<&SensorName> = each(reports).map(|(_, of)| &of.sensor).collect();
    let devices: Vec<String> = devices.into_iter().map(DeviceId::to_string).collect();
    let names: Vec<String> = names.into_iter().map(SensorName::to_string).collect();
    let found = all(port, KNOWN, cells![devices, names], |row| {
        let rank = (Hlc::from_bits(row.number(2)?), row.int(3)?);
        Ok(((row.device(0)?, row.parsed(1, "sensor name")?), rank))
    });
    Ok(found.await?.into_iter().collect())
}

/// How many sensors more each of these devices may declare.
async fn room(
    port: &mut dyn Port,
    devices: &BTreeSet<&DeviceId>,
) -> Result<BTreeMap<DeviceId, usize>, Broken> {
    if devices.is_empty() {
        return Ok(BTreeMap::new());
    }
    let ids: Vec<String> = devices.iter().map(|device| device.to_string()).collect();
    let counts = all(port, COUNTS, cells![ids], |row| {
        Ok((row.device(0)?, row.number::<usize>(1)?))
    });
    let room = |(device, count)| (device, DECLARED_SENSORS_MAX.saturating_sub(count));
    Ok(counts.await?.into_iter().map(room).collect())
}

/// A row as [`PUT`] takes it.
fn row((device, sensor): Of<'_>, winner: &Winner<'_>) -> Value {
    let SensorDeclaration {
        unit,
        description,
        value_type,
        min,
        max,
        precision,
        interval_ms,
    } = &winner.declared.declaration;
    let (decimals, step) = match precision {
        Some(Precision::Decimals(count)) => (Some(*count), None),
        Some(Precision::Step(step)) => (None, Some(*step)),
        None => (None, None),
    };
    let (version, digest) = winner.rank;
    json!([
        device,
        sensor,
        unit,
        description,
        value_type,
        min,
        max,
        decimals,
        step,
        interval_ms,
        int8(version.bits()),
        digest,
        winner.received_at.micros(),
    ])
}

fn kept(row: &dyn Row) -> Result<KeptSensor, StoreError> {
    let decimals = row.maybe_int(6)?.map(u8::try_from).transpose();
    let decimals = decimals.map_err(|error| unreadable("count of decimals", error))?;
    let step = row.maybe_float(7)?.map(Precision::Step);
    let value_type = match row.maybe_text(3)? {
        Some(_) => Some(row.parsed(3, "type of values")?),
        None => None,
    };
    let interval_ms = match row.maybe_int(8)? {
        Some(_) => Some(row.number(8)?),
        None => None,
    };
    Ok(KeptSensor {
        sensor: row.parsed(0, "sensor name")?,
        declaration: SensorDeclaration {
            unit: row.maybe_text(1)?,
            description: row.maybe_text(2)?,
            value_type,
            min: row.maybe_float(4)?,
            max: row.maybe_float(5)?,
            precision: decimals.map(Precision::Decimals).or(step),
            interval_ms,
        },
        version: Hlc::from_bits(row.number(9)?),
        declared_at: row.time(10)?,
    })
}
