//! Devices whose clock is off, kept as their reports come: the look for them reads these and nobody else.

use schema::DeviceId;
use schema::time::ReceivedAt;

use super::DeviceReport;
use super::sql::{Broken, Port, cells};

/// From when on a clock is kept: no setting of the alert is below.
const SKEW_MS_MIN: u64 = 10_000;

const PUT: &str = "INSERT INTO skewed_clocks (device_id, skew_ms, device_time_ms, reported_at) \
     SELECT f.value ->> 0, (f.value ->> 1)::INT8, (f.value ->> 2)::INT8, \
         'epoch'::TIMESTAMPTZ + (f.value ->> 3)::INT8 * interval '1 microsecond' \
     FROM jsonb_array_elements($1::TEXT::JSONB) AS f (value) WHERE true \
     ON CONFLICT (device_id) DO UPDATE SET skew_ms = excluded.skew_ms, \
         device_time_ms = excluded.device_time_ms, reported_at = excluded.reported_at \
     WHERE skewed_clocks.reported_at <= excluded.reported_at";

const FORGET: &str = "DELETE FROM skewed_clocks WHERE device_id = ANY($1) AND reported_at <= $2";

/// What a device said of its clock.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub(crate) device: DeviceId,
    pub(crate) device_time_ms: i64,
    pub(crate) received_at: ReceivedAt,
}

impl Said {
    pub(crate) fn of(report: &DeviceReport) -> Self {
        Self {
            device: report.device.clone(),
            device_time_ms: report.report.device_time_ms,
            received_at: report.received_at,
        }
    }

    /// How far it is off, where it is.
    fn skew_ms(&self) -> Option<i64> {
        let off = self
            .device_time_ms
            .saturating_sub(self.received_at.micros() / 1_000);
        (off.unsigned_abs() >= SKEW_MS_MIN).then_some(off)
    }
}

/// Keeps what devices said, of each the last.
pub(crate) async fn note(port: &mut dyn Port, said: &[Said]) -> Result<(), Broken> {
    let mut last: Vec<&Said> = Vec::with_capacity(said.len());
    for said in said {
        match last.iter_mut().find(|of| of.device == said.device) {
            Some(known) if known.received_at <= said.received_at => *known = said,
            Some(_) => {}
            None => last.push(said),
        }
    }
    last.sort_by(|a, b| a.device.cmp(&b.device));
    let Some(newest) = last.iter().map(|of| of.received_at).max() else {
        return Ok(());
    };
    let (mut skewed, mut right) = (Vec::new(), Vec::new());
    for said in last {
        match said.skew_ms() {
            Some(off) => {
                let (time, at) = (said.device_time_ms, said.received_at.micros());
                skewed.push(serde_json::json!([said.device.as_str(), off, time, at]));
            }
            None => right.push(said.device.to_string()),
        }
    }
    if !skewed.is_empty() {
        let skewed = serde_json::Value::Array(skewed).to_string();
        port.execute(PUT, cells![skewed]).await?;
    }
    if !right.is_empty() {
        port.execute(FORGET, cells![right, newest]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_off_from_ten_seconds_on() {
        let said = |ms: i64| Said {
            device: "d".parse().unwrap(),
            device_time_ms: 1_000_000 + ms,
            received_at: ReceivedAt::from_micros(1_000_000_000),
        };
        for (ms, skew) in [
            (0, None),
            (9_999, None),
            (10_000, Some(10_000)),
            (10_001, Some(10_001)),
            (-9_999, None),
            (-10_000, Some(-10_000)),
        ] {
            assert_eq!(said(ms).skew_ms(), skew, "{ms}");
        }
        let never = Said {
            device_time_ms: i64::MIN,
            ..said(0)
        };
        assert_eq!(never.skew_ms(), Some(i64::MIN));
    }
}
