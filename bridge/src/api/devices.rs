//! Devices, their readings, their conflicts, and what was set aside.

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use schema::{ObservedAt, Quality, SensorName, Value};
use serde::Serialize;

use super::Shared;
use super::problem::Problem;
use super::query::{Query, rfc3339, time};
use crate::store::{
    Conflict, Device, KeptLetter, Order, QUERY_ROWS_MAX, StoredReading, TelemetryQuery,
};

/// Rows of an answer unless asked for more.
const LIMIT: usize = 1_000;

#[derive(Debug, Serialize)]
pub(crate) struct Devices {
    devices: Vec<DeviceBody>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct DeviceBody {
    device: String,
    online: bool,
    first_seen: String,
    last_seen: String,
    agent_version: Option<String>,
    epoch: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Readings {
    device: String,
    readings: Vec<ReadingBody>,
    /// Where the next page begins, if there is one: pass it as `from` or, newest first, as `to`.
    /// Without a sensor, readings of the page's last instant come again there. A page that holds
    /// nothing but one instant names no next one: ask for more rows, or for one sensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ReadingBody {
    sensor: SensorName,
    observed_at: String,
    value: Value,
    quality: Quality,
    received_at: String,
    epoch: String,
    seq: u64,
    hlc: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Conflicts {
    conflicts: Vec<ConflictBody>,
}

#[derive(Debug, Serialize)]
struct ConflictBody {
    loser: ReadingBody,
    winner: VersionBody,
    recorded_at: String,
}

#[derive(Debug, Serialize)]
struct VersionBody {
    epoch: String,
    seq: u64,
    hlc: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct DeadLetters {
    dead_letters: Vec<LetterBody>,
}

#[derive(Debug, Serialize)]
struct LetterBody {
    device: Option<String>,
    topic: String,
    reason: String,
    received_at: String,
    times: u64,
    payload_bytes: u64,
    payload_hex: String,
}

pub(crate) async fn list(
    State(store): Shared,
    RawQuery(query): RawQuery,
) -> Result<Json<Devices>, Problem> {
    let query = Query::parse(query.as_deref(), &["after", "limit"])?;
    let after = query.get("after", str::parse)?;
    let limit = query.limit(LIMIT, QUERY_ROWS_MAX)?;
    let devices = store.devices(after.as_ref(), limit).await?;
    let next = match devices.last() {
        Some(last) if devices.len() == limit => Some(last.device.to_string()),
        _ => None,
    };
    Ok(Json(Devices {
        devices: devices.into_iter().map(DeviceBody::from).collect(),
        next,
    }))
}

pub(crate) async fn one(
    State(store): Shared,
    Path(device): Path<String>,
) -> Result<Json<DeviceBody>, Problem> {
    let device = super::device(&device)?;
    match store.device(&device).await? {
        Some(found) => Ok(Json(found.into())),
        None => Err(Problem::not_found(format!("no device {device} is known"))),
    }
}

pub(crate) async fn telemetry(
    State(store): Shared,
    Path(device): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Readings>, Problem> {
    let device = super::device(&device)?;
    let query = Query::parse(
        query.as_deref(),
        &["sensor", "from", "to", "limit", "order"],
    )?;
    let order = query
        .get("order", |text| match text {
            "oldest" => Ok(Order::OldestFirst),
            "newest" => Ok(Order::NewestFirst),
            _ => Err(format!("{text:?} is neither oldest nor newest")),
        })?
        .unwrap_or(Order::OldestFirst);
    let query = TelemetryQuery {
        device,
        sensor: query.get("sensor", str::parse)?,
        from: query
            .get("from", time)?
            .unwrap_or(ObservedAt::from_micros(0)),
        to: query
            .get("to", time)?
            // The year 9999: what every store and calendar holds.
            .unwrap_or(ObservedAt::from_micros(253_402_300_799_999_999)),
        limit: query.limit(LIMIT, QUERY_ROWS_MAX)?,
        order,
    };
    let readings = store.telemetry(&query).await?;
    let next = if readings.len() == query.limit {
        next_page(&readings, query.sensor.is_some(), order)
    } else {
        None
    };
    Ok(Json(Readings {
        device: query.device.to_string(),
        readings: readings.into_iter().map(ReadingBody::from).collect(),
        next,
    }))
}

pub(crate) async fn latest(
    State(store): Shared,
    Path(device): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Readings>, Problem> {
    let device = super::device(&device)?;
    Query::parse(query.as_deref(), &[])?;
    let readings = store.latest(&device).await?;
    Ok(Json(Readings {
        device: device.to_string(),
        readings: readings.into_iter().map(ReadingBody::from).collect(),
        next: None,
    }))
}

/// Where the page behind a full one begins: always further on than this one did.
fn next_page(readings: &[StoredReading], of_one_sensor: bool, order: Order) -> Option<String> {
    let (first, last) = (readings.first()?, readings.last()?);
    let last_micros = last.observed_at.micros();
    // A sensor has one reading an instant; several sensors may share the last one, and the page
    // may have cut between them.
    let next = match (of_one_sensor, order) {
        (true, Order::OldestFirst) => last_micros.saturating_add(1),
        (true, Order::NewestFirst) => last_micros,
        (false, _) if first.observed_at == last.observed_at => return None,
        (false, Order::OldestFirst) => last_micros,
        (false, Order::NewestFirst) => last_micros.saturating_add(1),
    };
    Some(next.to_string())
}

pub(crate) async fn conflicts(
    State(store): Shared,
    Path(device): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Conflicts>, Problem> {
    let device = super::device(&device)?;
    let limit = Query::parse(query.as_deref(), &["limit"])?.limit(LIMIT, QUERY_ROWS_MAX)?;
    let conflicts = store.conflicts(&device, limit).await?;
    Ok(Json(Conflicts {
        conflicts: conflicts.into_iter().map(ConflictBody::from).collect(),
    }))
}

pub(crate) async fn dead_letters(
    State(store): Shared,
    RawQuery(query): RawQuery,
) -> Result<Json<DeadLetters>, Problem> {
    let query = Query::parse(query.as_deref(), &["device", "limit"])?;
    let device = query.get("device", str::parse)?;
    let limit = query.limit(100, 1_000)?;
    let letters = store.dead_letters(device.as_ref(), limit).await?;
    Ok(Json(DeadLetters {
        dead_letters: letters.into_iter().map(LetterBody::from).collect(),
    }))
}

impl From<Device> for DeviceBody {
    fn from(device: Device) -> Self {
        Self {
            device: device.device.to_string(),
            online: device.online,
            first_seen: rfc3339(device.first_seen.micros()),
            last_seen: rfc3339(device.last_seen.micros()),
            agent_version: device.agent_version,
            epoch: device.epoch.map(|epoch| epoch.to_string()),
        }
    }
}

impl From<StoredReading> for ReadingBody {
    fn from(reading: StoredReading) -> Self {
        Self {
            sensor: reading.sensor,
            observed_at: rfc3339(reading.observed_at.micros()),
            value: reading.value,
            quality: reading.quality,
            received_at: rfc3339(reading.received_at.micros()),
            epoch: reading.version.epoch.to_string(),
            seq: reading.version.seq,
            hlc: reading.version.hlc.bits(),
        }
    }
}

impl From<Conflict> for ConflictBody {
    fn from(conflict: Conflict) -> Self {
        Self {
            loser: conflict.loser.into(),
            winner: VersionBody {
                epoch: conflict.winner.epoch.to_string(),
                seq: conflict.winner.seq,
                hlc: conflict.winner.hlc.bits(),
            },
            recorded_at: rfc3339(conflict.recorded_at.micros()),
        }
    }
}

impl From<KeptLetter> for LetterBody {
    fn from(kept: KeptLetter) -> Self {
        Self {
            device: kept.letter.device.map(|device| device.to_string()),
            topic: kept.letter.topic,
            reason: kept.letter.reason,
            received_at: rfc3339(kept.letter.received_at.micros()),
            times: kept.times,
            payload_bytes: kept.payload_bytes,
            payload_hex: hex::encode(kept.letter.payload),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::time::ReceivedAt;
    use schema::{Epoch, Hlc, Version};

    fn page(micros: &[i64]) -> Vec<StoredReading> {
        micros
            .iter()
            .map(|&micros| StoredReading {
                sensor: "s".parse().unwrap(),
                observed_at: ObservedAt::from_micros(micros),
                value: Value::Bool(true),
                quality: Quality::Good,
                version: Version {
                    hlc: Hlc::default(),
                    epoch: Epoch::from_random(1),
                    seq: 1,
                },
                received_at: ReceivedAt::from_micros(0),
            })
            .collect()
    }

    #[test]
    fn the_next_page_leaves_nothing_out_and_goes_on() {
        use Order::{NewestFirst, OldestFirst};
        let next = |micros: &[i64], one, order| next_page(&page(micros), one, order);
        // `from` is inclusive, `to` is not.
        assert_eq!(next(&[5], true, OldestFirst), Some("6".to_owned()));
        assert_eq!(next(&[5], true, NewestFirst), Some("5".to_owned()));
        assert_eq!(next(&[5, 7], false, OldestFirst), Some("7".to_owned()));
        assert_eq!(next(&[7, 5], false, NewestFirst), Some("6".to_owned()));
        assert_eq!(next(&[5, 5], false, OldestFirst), None);
        assert_eq!(next(&[5, 5], false, NewestFirst), None);
    }
}
