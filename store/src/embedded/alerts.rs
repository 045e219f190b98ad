//! Alerts in the file.

use std::time::Duration;

use async_trait::async_trait;
use libsql::{Row, Value as Cell};
use schema::DeviceId;
use schema::time::ReceivedAt;

use super::super::StoreError;
use super::super::alerts::{
    Alert, AlertBounds, AlertQuery, AlertStore, FINDINGS_MAX, Finding, Rule, SKEW_AGE, before,
    detail, named,
};
use super::Embedded;
use super::query::limited;
use super::values::{
    self, bad, cell, int, maybe_int, number, received, text, text_cell, time_cell,
};

const BEGIN: &str = "INSERT INTO alert_rounds (id, begun_at) VALUES (1, ?1) \
     ON CONFLICT (id) DO UPDATE SET begun_at = excluded.begun_at \
     WHERE alert_rounds.begun_at <= ?2";

/// Devices that were born once and gave no sign of life since, whatever their last word was.
const OFFLINE: &str = concat!(
    "SELECT d.device_id, ",
    last_seen_in_file!(),
    " FROM devices AS d \
     WHERE d.session IS NOT NULL AND d.retired_at IS NULL AND NOT ",
    is_heard!("?1"),
    " ORDER BY d.device_id LIMIT ?2"
);

const LETTERS: &str = "SELECT device_id, count(*) FROM dead_letters WHERE received_at > ?1 \
     GROUP BY device_id ORDER BY device_id LIMIT ?2";

const SETTINGS: &str = "SELECT device_id, min(key), count(*) FROM reported_config \
     WHERE failure IS NOT NULL GROUP BY device_id ORDER BY device_id LIMIT ?1";

const SKEWED: &str = "SELECT device_id, device_time_ms, reported_at FROM sync_status \
     WHERE reported_at > ?1 AND abs(reported_at / 1000 - device_time_ms) > ?2 \
     ORDER BY device_id, reported_at LIMIT ?3";

const RAISE: &str = "INSERT INTO alerts (id, rule, device_id, detail, opened_at, last_seen_at) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?5) \
     ON CONFLICT (rule, device_id) WHERE resolved_at IS NULL DO UPDATE SET \
         detail = excluded.detail, last_seen_at = excluded.last_seen_at";

const RESOLVE: &str = "UPDATE alerts SET resolved_at = ?2 \
     WHERE rule = ?1 AND resolved_at IS NULL AND last_seen_at < ?2";

const RESOLVE_UNSEEN: &str = "UPDATE alerts SET resolved_at = ?2 \
     WHERE rule = ?1 AND resolved_at IS NULL AND last_seen_at < ?3";

macro_rules! alert_columns {
    ($rest:literal) => {
        concat!(
            "SELECT id, rule, device_id, detail, opened_at, last_seen_at, acknowledged_at, \
             acknowledged_by, resolved_at FROM alerts ",
            $rest
        )
    };
}

const ONE: &str = alert_columns!("WHERE id = ?1");

const LATEST: &str = alert_columns!(
    "WHERE (opened_at, id) < (?1, ?2) AND (?3 = '' OR device_id = ?3) \
         AND (?4 = '' OR CASE WHEN resolved_at IS NOT NULL THEN 'resolved' \
             WHEN acknowledged_at IS NOT NULL THEN 'acknowledged' ELSE 'firing' END = ?4) \
     ORDER BY opened_at DESC, id DESC LIMIT ?5"
);

const ACKNOWLEDGE: &str = "UPDATE alerts SET acknowledged_at = ?2, acknowledged_by = ?3 \
     WHERE id = ?1 AND acknowledged_at IS NULL AND resolved_at IS NULL";

const FIRING: &str =
    "SELECT count(*) FROM alerts WHERE resolved_at IS NULL AND acknowledged_at IS NULL";

const FORGET: &str = "DELETE FROM alerts WHERE resolved_at < ?1";

#[async_trait]
impl AlertStore for Embedded {
    async fn begin_alert_round(
        &self,
        now: ReceivedAt,
        interval: Duration,
    ) -> Result<bool, StoreError> {
        let values = vec![time_cell(now), time_cell(before(now, interval))];
        self.write(move |file| Ok(file.execute(BEGIN, values)? > 0))
            .await
    }

    async fn findings(
        &self,
        rule: Rule,
        now: ReceivedAt,
        bounds: &AlertBounds,
    ) -> Result<Vec<Finding>, StoreError> {
        let since = |age| time_cell(before(now, age));
        let most = limited(FINDINGS_MAX);
        type Read = fn(&Row) -> Result<String, StoreError>;
        let (sql, values, read): (_, _, Read) = match rule {
            Rule::ReadingsUnaccounted | Rule::StoreRefuses => return Ok(Vec::new()),
            Rule::DeviceOffline => (OFFLINE, vec![since(bounds.offline_after), most], |row| {
                Ok(detail::offline(received(row, 1)?))
            }),
            Rule::DeadLetters => (LETTERS, vec![since(bounds.letter_age), most], |row| {
                Ok(detail::letters(number(row, 1)?))
            }),
            Rule::SettingNotInForce => (SETTINGS, vec![most], |row| {
                Ok(detail::settings(text(row, 1)?, number(row, 2)?))
            }),
            Rule::ClockSkewed => {
                let skew = u64::try_from(bounds.skew_max.as_millis()).unwrap_or(u64::MAX);
                let values = vec![since(SKEW_AGE), cell(skew), most];
                (SKEWED, values, |row| {
                    Ok(detail::skewed(int(row, 1)?, received(row, 2)?))
                })
            }
        };
        let finding = move |row: &Row| {
            Ok(Finding {
                device: device(row, 0)?,
                detail: read(row)?,
            })
        };
        self.read(move |file| file.query_sound(sql, values, finding))
            .await
    }

    async fn raise(
        &self,
        rule: Rule,
        findings: &[Finding],
        now: ReceivedAt,
    ) -> Result<(), StoreError> {
        let rows: Vec<Vec<Cell>> = named(findings)
            .into_iter()
            .map(|(id, device, detail)| {
                vec![
                    Cell::Text(id),
                    text_cell(rule.as_str()),
                    text_cell(device),
                    text_cell(detail),
                    time_cell(now),
                ]
            })
            .collect();
        self.write(move |file| {
            for values in rows {
                file.execute(RAISE, values)?;
            }
            Ok(())
        })
        .await
    }

    async fn resolve_alerts(&self, rule: Rule, now: ReceivedAt) -> Result<u64, StoreError> {
        let values = vec![text_cell(rule.as_str()), time_cell(now)];
        self.write(move |file| Ok(file.execute(RESOLVE, values)? as u64))
            .await
    }

    async fn resolve_unseen_alerts(
        &self,
        rule: Rule,
        unseen_since: ReceivedAt,
        now: ReceivedAt,
    ) -> Result<u64, StoreError> {
        let values = vec![
            text_cell(rule.as_str()),
            time_cell(now),
            time_cell(unseen_since),
        ];
        self.write(move |file| Ok(file.execute(RESOLVE_UNSEEN, values)? as u64))
            .await
    }

    async fn alerts(&self, query: &AlertQuery) -> Result<Vec<Alert>, StoreError> {
        let (at, id) = match &query.after {
            Some((at, id)) => (at.micros(), id.as_str()),
            // Behind every name.
            None => (i64::MAX, "g"),
        };
        let values = vec![
            Cell::Integer(at),
            text_cell(id),
            text_cell(query.device.as_ref().map_or("", DeviceId::as_str)),
            text_cell(query.state.map_or("", |state| state.as_str())),
            limited(query.limit),
        ];
        self.read(move |file| file.query_sound(LATEST, values, alert))
            .await
    }

    async fn alert(&self, id: &str) -> Result<Option<Alert>, StoreError> {
        let values = vec![text_cell(id)];
        let found = self
            .read(move |file| file.query(ONE, values, alert))
            .await?;
        Ok(found.into_iter().next())
    }

    async fn acknowledge_alert(
        &self,
        id: &str,
        by: &str,
        now: ReceivedAt,
    ) -> Result<(), StoreError> {
        let values = vec![text_cell(id), time_cell(now), text_cell(by)];
        self.write(move |file| {
            file.execute(ACKNOWLEDGE, values)?;
            Ok(())
        })
        .await
    }

    async fn alerts_firing(&self) -> Result<u64, StoreError> {
        let found = self
            .read(|file| file.query(FIRING, Vec::new(), |row| number(row, 0)))
            .await?;
        Ok(found.into_iter().next().unwrap_or_default())
    }

    async fn forget_alerts(&self, before: ReceivedAt) -> Result<u64, StoreError> {
        let values = vec![time_cell(before)];
        self.write(move |file| Ok(file.execute(FORGET, values)? as u64))
            .await
    }
}

/// '' is none.
fn device(row: &Row, at: i32) -> Result<Option<DeviceId>, StoreError> {
    match text(row, at)? {
        "" => Ok(None),
        _ => values::device(row, at).map(Some),
    }
}

fn alert(row: &Row) -> Result<Alert, StoreError> {
    let time = |at| Ok::<_, StoreError>(maybe_int(row, at)?.map(ReceivedAt::from_micros));
    let rule = text(row, 1)?;
    let by = row.get_str(7).ok().map(str::to_owned);
    Ok(Alert {
        id: text(row, 0)?.to_owned(),
        rule: Rule::parse(rule).ok_or_else(|| bad("rule of an alert", rule))?,
        finding: Finding {
            device: device(row, 2)?,
            detail: text(row, 3)?.to_owned(),
        },
        opened_at: received(row, 4)?,
        last_seen_at: received(row, 5)?,
        acknowledged: time(6)?.zip(by),
        resolved_at: time(8)?,
    })
}
