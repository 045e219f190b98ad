//! Alerts: one look of one bridge at a time, and what people say of them.

use std::time::Duration;

use async_trait::async_trait;
use schema::DeviceId;
use schema::time::ReceivedAt;
use sqlx::postgres::PgRow;
use sqlx::{Executor as _, Row as _};

use super::super::StoreError;
use super::super::alerts::{
    Alert, AlertBounds, AlertQuery, AlertStore, FINDINGS_MAX, Finding, Rule, SKEW_AGE, before,
    detail, named,
};
use super::arguments::Micros;
use super::dialect::Purpose;
use super::ingest::micros;
use super::query::limited;
use super::{Cockroach, rows};

const BEGIN: &str = "INSERT INTO alert_rounds (id, begun_at) VALUES (1, $1) \
     ON CONFLICT (id) DO UPDATE SET begun_at = excluded.begun_at \
     WHERE alert_rounds.begun_at <= $2";

/// Devices that were born once and gave no sign of life since, whatever their last word was.
const OFFLINE: &str = concat!(
    "SELECT d.device_id, ",
    last_seen!(),
    " FROM devices AS d \
     WHERE d.session IS NOT NULL AND d.retired_at IS NULL AND NOT ",
    is_heard!("$1"),
    " ORDER BY d.device_id LIMIT $2"
);

const LETTERS: &str = "SELECT device_id, count(*) FROM dead_letters WHERE received_at > $1 \
     GROUP BY device_id ORDER BY device_id LIMIT $2";

const SETTINGS: &str = "SELECT device_id, min(key), count(*) FROM reported_config \
     WHERE failure IS NOT NULL GROUP BY device_id ORDER BY device_id LIMIT $1";

/// Of buffer files that were reported on lately.
const SKEWED: &str = "SELECT device_id, device_time_ms, reported_at FROM sync_status \
     WHERE reported_at > $1 \
         AND abs(extract(epoch FROM reported_at)::FLOAT8 * 1000::FLOAT8 \
             - device_time_ms::FLOAT8) > $2::FLOAT8 \
     ORDER BY device_id, reported_at LIMIT $3";

const RAISE: &str = "INSERT INTO alerts (id, rule, device_id, detail, opened_at, last_seen_at) \
     SELECT f.id, $4, f.device_id, f.detail, $5, $5 \
     FROM unnest($1::TEXT[], $2::TEXT[], $3::TEXT[]) AS f (id, device_id, detail) \
     ON CONFLICT (rule, device_id) WHERE resolved_at IS NULL DO UPDATE SET \
         detail = excluded.detail, last_seen_at = excluded.last_seen_at";

const RESOLVE: &str = "UPDATE alerts SET resolved_at = $2 \
     WHERE rule = $1 AND resolved_at IS NULL AND last_seen_at < $2";

const RESOLVE_UNSEEN: &str = "UPDATE alerts SET resolved_at = $2 \
     WHERE rule = $1 AND resolved_at IS NULL AND last_seen_at < $3";

macro_rules! alert_columns {
    ($rest:literal) => {
        concat!(
            "SELECT id, rule, device_id, detail, opened_at, last_seen_at, acknowledged_at, \
             acknowledged_by, resolved_at FROM alerts ",
            $rest
        )
    };
}

const ONE: &str = alert_columns!("WHERE id = $1");

const LATEST: &str = alert_columns!(
    "WHERE (opened_at, id) < ($1, $2) AND ($3 = '' OR device_id = $3) \
         AND ($4 = '' OR CASE WHEN resolved_at IS NOT NULL THEN 'resolved' \
             WHEN acknowledged_at IS NOT NULL THEN 'acknowledged' ELSE 'firing' END = $4) \
     ORDER BY opened_at DESC, id DESC LIMIT $5"
);

const ACKNOWLEDGE: &str = "UPDATE alerts SET acknowledged_at = $2, acknowledged_by = $3 \
     WHERE id = $1 AND acknowledged_at IS NULL AND resolved_at IS NULL";

const FIRING: &str =
    "SELECT count(*) FROM alerts WHERE resolved_at IS NULL AND acknowledged_at IS NULL";

const FORGET: &str = "DELETE FROM alerts WHERE resolved_at < $1";

#[async_trait]
impl AlertStore for Cockroach {
    async fn begin_alert_round(
        &self,
        now: ReceivedAt,
        interval: Duration,
    ) -> Result<bool, StoreError> {
        let due = micros(before(now, interval));
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let begin = sqlx::query(BEGIN).bind(micros(now)).bind(due);
            Ok(connection.execute(begin).await?.rows_affected() > 0)
        })
    }

    async fn findings(
        &self,
        rule: Rule,
        now: ReceivedAt,
        bounds: &AlertBounds,
    ) -> Result<Vec<Finding>, StoreError> {
        let most = limited(FINDINGS_MAX);
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let (query, read): (_, fn(&PgRow) -> Result<String, sqlx::Error>) = match rule {
                Rule::ReadingsUnaccounted | Rule::StoreRefuses => return Ok(Vec::new()),
                Rule::DeviceOffline => (
                    sqlx::query(OFFLINE)
                        .bind(micros(before(now, bounds.offline_after)))
                        .bind(most),
                    |row| Ok(detail::offline(rows::received(row, 1)?)),
                ),
                Rule::DeadLetters => (
                    sqlx::query(LETTERS)
                        .bind(micros(before(now, bounds.letter_age)))
                        .bind(most),
                    |row| Ok(detail::letters(rows::number(row, 1)?)),
                ),
                Rule::SettingNotInForce => (sqlx::query(SETTINGS).bind(most), |row| {
                    Ok(detail::settings(row.try_get(1)?, rows::number(row, 2)?))
                }),
                Rule::ClockSkewed => (
                    sqlx::query(SKEWED)
                        .bind(micros(before(now, SKEW_AGE)))
                        .bind(bounds.skew_max.as_millis() as f64)
                        .bind(most),
                    |row| Ok(detail::skewed(row.try_get(1)?, rows::received(row, 2)?)),
                ),
            };
            let found = connection.fetch_all(query).await?;
            let finding = |row: &PgRow| {
                Ok(Finding {
                    device: device(row, 0)?,
                    detail: read(row)?,
                })
            };
            found.iter().map(finding).collect()
        })
    }

    async fn raise(
        &self,
        rule: Rule,
        findings: &[Finding],
        now: ReceivedAt,
    ) -> Result<(), StoreError> {
        let named = named(findings);
        let ids: Vec<&str> = named.iter().map(|(id, ..)| id.as_str()).collect();
        let devices: Vec<&str> = named.iter().map(|(_, device, _)| *device).collect();
        let details: Vec<&str> = named.iter().map(|(.., detail)| *detail).collect();
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let raise = sqlx::query(RAISE).bind(&ids).bind(&devices).bind(&details);
            let raise = raise.bind(rule.as_str()).bind(micros(now));
            connection.execute(raise).await
        })?;
        Ok(())
    }

    async fn resolve_alerts(&self, rule: Rule, now: ReceivedAt) -> Result<u64, StoreError> {
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let resolve = sqlx::query(RESOLVE).bind(rule.as_str()).bind(micros(now));
            Ok(connection.execute(resolve).await?.rows_affected())
        })
    }

    async fn resolve_unseen_alerts(
        &self,
        rule: Rule,
        unseen_since: ReceivedAt,
        now: ReceivedAt,
    ) -> Result<u64, StoreError> {
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let resolve = sqlx::query(RESOLVE_UNSEEN).bind(rule.as_str());
            let resolve = resolve.bind(micros(now)).bind(micros(unseen_since));
            Ok(connection.execute(resolve).await?.rows_affected())
        })
    }

    async fn alerts(&self, query: &AlertQuery) -> Result<Vec<Alert>, StoreError> {
        let (at, id) = match &query.after {
            Some((at, id)) => (micros(*at), id.as_str()),
            // Behind every name.
            None => (Micros(super::super::plan::OBSERVED_AT_MAX.micros()), "g"),
        };
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let select = sqlx::query(LATEST)
                .bind(at)
                .bind(id)
                .bind(query.device.as_ref().map_or("", DeviceId::as_str))
                .bind(query.state.map_or("", |state| state.as_str()))
                .bind(limited(query.limit));
            let found = connection.fetch_all(select).await?;
            found.iter().map(alert).collect()
        })
    }

    async fn alert(&self, id: &str) -> Result<Option<Alert>, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let found = connection.fetch_optional(sqlx::query(ONE).bind(id)).await?;
            found.as_ref().map(alert).transpose()
        })
    }

    async fn acknowledge_alert(
        &self,
        id: &str,
        by: &str,
        now: ReceivedAt,
    ) -> Result<(), StoreError> {
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let update = sqlx::query(ACKNOWLEDGE).bind(id).bind(micros(now)).bind(by);
            connection.execute(update).await
        })?;
        Ok(())
    }

    async fn alerts_firing(&self) -> Result<u64, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            rows::number(&connection.fetch_one(FIRING).await?, 0)
        })
    }

    async fn forget_alerts(&self, before: ReceivedAt) -> Result<u64, StoreError> {
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let forget = sqlx::query(FORGET).bind(micros(before));
            Ok(connection.execute(forget).await?.rows_affected())
        })
    }
}

/// '' is none.
fn device(row: &PgRow, at: usize) -> Result<Option<DeviceId>, sqlx::Error> {
    match row.try_get::<&str, _>(at)? {
        "" => Ok(None),
        _ => rows::device(row, at).map(Some),
    }
}

fn alert(row: &PgRow) -> Result<Alert, sqlx::Error> {
    let time = |at| -> Result<Option<ReceivedAt>, sqlx::Error> {
        let found: Option<Micros> = row.try_get(at)?;
        Ok(found.map(|micros| ReceivedAt::from_micros(micros.0)))
    };
    let rule: &str = row.try_get(1)?;
    let by: Option<String> = row.try_get(7)?;
    Ok(Alert {
        id: row.try_get(0)?,
        rule: Rule::parse(rule).ok_or_else(|| rows::bad(1)("no rule of alerts"))?,
        finding: Finding {
            device: device(row, 2)?,
            detail: row.try_get(3)?,
        },
        opened_at: rows::received(row, 4)?,
        last_seen_at: rows::received(row, 5)?,
        acknowledged: time(6)?.zip(by),
        resolved_at: time(8)?,
    })
}
