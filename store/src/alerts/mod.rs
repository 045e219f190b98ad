//! Alerts as the database keeps them.
//!
//! ```text
//! a rule finds it ──► firing ──► acknowledged ──┐
//!                       └───────────────────────┴──► resolved, when a round finds it no more
//! ```

mod offline;

use std::time::Duration;

use async_trait::async_trait;
use schema::DeviceId;
use schema::time::ReceivedAt;

use super::StoreError;
use super::sql::{Access, Database, Read, Row, cells, page_limit, unreadable};
pub use offline::SWEEP_DEVICES;
use offline::offline;

/// Most findings of one rule that are told at a time.
pub const FINDINGS_MAX: usize = 1_000;

/// How old a report may be that is looked at for skew: a device that is there reports every minute.
const SKEW_AGE: Duration = Duration::from_secs(3_600);

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A device went away and has not come back.
    DeviceOffline,
    /// Readings are neither in the database nor on their device.
    ReadingsUnaccounted,
    /// Payloads could not be used.
    DeadLetters,
    /// A setting that is desired is not in force.
    SettingNotInForce,
    /// A device's clock is wrong.
    ClockSkewed,
    /// The database refuses what it should take.
    StoreRefuses,
    /// More was to be kept aside than a quota allows.
    QuotaExceeded,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Somebody should look at it.
    Warning,
    /// Data is lost, or about to be.
    Critical,
}

/// From when on something counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlertBounds {
    /// How long a device may be away.
    pub offline_after: Duration,
    /// How far a device's clock may be off.
    pub skew_max: Duration,
    /// How long a dead letter counts as new, and what was not kept.
    pub letter_age: Duration,
}

/// What a rule found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// On which device, or on none.
    pub device: Option<DeviceId>,
    /// What is wrong, in a sentence.
    pub detail: String,
}

/// Where an alert stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlertState {
    /// Nobody has said anything.
    Firing,
    /// Somebody knows of it.
    Acknowledged,
    /// It is no more.
    Resolved,
}

/// One alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// Its own name.
    pub id: String,
    /// What was looked for.
    pub rule: Rule,
    /// What was found.
    pub finding: Finding,
    /// When it was found first.
    pub opened_at: ReceivedAt,
    /// When it was found last.
    pub last_seen_at: ReceivedAt,
    /// When somebody acknowledged it, and who.
    pub acknowledged: Option<(ReceivedAt, String)>,
    /// When it was found no more.
    pub resolved_at: Option<ReceivedAt>,
}

/// Which alerts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AlertQuery {
    /// In this state.
    pub state: Option<AlertState>,
    /// Of this device.
    pub device: Option<DeviceId>,
    /// Behind the one that was opened then and has this name.
    pub after: Option<(ReceivedAt, String)>,
    /// At most so many.
    pub limit: usize,
}

/// What a database keeps of alerts.
#[async_trait]
pub trait AlertStore: Send + Sync {
    /// Whether a round may begin now: nobody else has begun one within `interval`.
    async fn begin_alert_round(
        &self,
        now: ReceivedAt,
        interval: Duration,
    ) -> Result<bool, StoreError>;

    /// What a rule finds now, by device, at most [`FINDINGS_MAX`]: with so many there may be more, behind the last one's
    /// device. Of [`Rule::DeviceOffline`] it is all at once, and nothing behind a device: those that said good-bye, those of
    /// which an alert is open, and of the others the next [`SWEEP_DEVICES`] behind those of the last look. Nothing for
    /// [`Rule::ReadingsUnaccounted`], which the fleet's ledger tells, and for [`Rule::StoreRefuses`], which bridges see.
    async fn findings(
        &self,
        rule: Rule,
        now: ReceivedAt,
        bounds: &AlertBounds,
        after: Option<&DeviceId>,
    ) -> Result<Vec<Finding>, StoreError>;

    /// Opens an alert for each finding, or sees the open one again.
    async fn raise(
        &self,
        rule: Rule,
        findings: &[Finding],
        now: ReceivedAt,
    ) -> Result<(), StoreError>;

    /// Resolves the open alerts of a rule that were not seen since. Returns how many.
    async fn resolve_alerts(&self, rule: Rule, now: ReceivedAt) -> Result<u64, StoreError>;

    /// Resolves the open alerts of a rule that were not seen since a time. Returns how many.
    async fn resolve_unseen_alerts(
        &self,
        rule: Rule,
        unseen_since: ReceivedAt,
        now: ReceivedAt,
    ) -> Result<u64, StoreError>;

    /// Alerts, latest first.
    async fn alerts(&self, query: &AlertQuery) -> Result<Vec<Alert>, StoreError>;

    /// One alert.
    async fn alert(&self, id: &str) -> Result<Option<Alert>, StoreError>;

    /// Acknowledges an alert; the first name stays. One that is resolved does not change.
    async fn acknowledge_alert(
        &self,
        id: &str,
        by: &str,
        now: ReceivedAt,
    ) -> Result<(), StoreError>;

    /// How many alerts fire and are not acknowledged.
    async fn alerts_firing(&self) -> Result<u64, StoreError>;

    /// Drops alerts that were resolved before a time. Returns how many.
    async fn forget_alerts(&self, before: ReceivedAt) -> Result<u64, StoreError>;
}

impl Rule {
    /// All rules.
    pub const ALL: [Self; 7] = [
        Self::DeviceOffline,
        Self::ReadingsUnaccounted,
        Self::DeadLetters,
        Self::SettingNotInForce,
        Self::ClockSkewed,
        Self::StoreRefuses,
        Self::QuotaExceeded,
    ];

    /// As it stands in the database and in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DeviceOffline => "device_offline",
            Self::ReadingsUnaccounted => "readings_unaccounted",
            Self::DeadLetters => "dead_letters",
            Self::SettingNotInForce => "setting_not_in_force",
            Self::ClockSkewed => "clock_skewed",
            Self::StoreRefuses => "store_refuses",
            Self::QuotaExceeded => "quota_exceeded",
        }
    }

    /// How bad it is.
    #[must_use]
    pub const fn severity(self) -> Severity {
        match self {
            Self::ReadingsUnaccounted | Self::StoreRefuses => Severity::Critical,
            Self::DeviceOffline
            | Self::DeadLetters
            | Self::SettingNotInForce
            | Self::ClockSkewed
            | Self::QuotaExceeded => Severity::Warning,
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.as_str() == text)
    }
}

impl Severity {
    /// As it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl AlertState {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Firing, Self::Acknowledged, Self::Resolved];

    /// As it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Acknowledged => "acknowledged",
            Self::Resolved => "resolved",
        }
    }
}

impl Alert {
    /// Where it stands.
    #[must_use]
    pub const fn state(&self) -> AlertState {
        match (&self.resolved_at, &self.acknowledged) {
            (Some(_), _) => AlertState::Resolved,
            (None, Some(_)) => AlertState::Acknowledged,
            (None, None) => AlertState::Firing,
        }
    }
}

impl Default for AlertBounds {
    fn default() -> Self {
        Self {
            // Longer than a restart and the longest pause between two tries to connect.
            offline_after: Duration::from_secs(5 * 60),
            skew_max: Duration::from_secs(5 * 60),
            letter_age: Duration::from_secs(15 * 60),
        }
    }
}

const BEGIN: &str = "INSERT INTO alert_rounds (id, begun_at) VALUES (1, $1) \
     ON CONFLICT (id) DO UPDATE SET begun_at = excluded.begun_at \
     WHERE alert_rounds.begun_at <= $2";

/// Those of no device come first, and are on the first page alone. By the index of the latest: whoever plans for all values
/// would rather read all letters in the order of their devices.
pub(crate) const LETTERS: &str = "SELECT device_id, count(*) FROM ( \
         SELECT device_id FROM dead_letters WHERE received_at > $1 \
             AND (device_id > $2 OR $2 = '') ORDER BY received_at DESC) AS l \
     GROUP BY device_id ORDER BY device_id LIMIT $3";

/// By the index of such settings alone.
pub(crate) const SETTINGS: &str = "SELECT device_id, min(key), count(*) FROM reported_config \
     WHERE failure IS NOT NULL AND device_id > $1 \
     GROUP BY device_id ORDER BY device_id LIMIT $2";

/// Of devices that reported lately; whose clock is right has no row.
const SKEWED: &str = "SELECT device_id, device_time_ms, reported_at FROM skewed_clocks \
     WHERE reported_at > $1 AND device_id > $3 AND abs(skew_ms) > $2 \
     ORDER BY device_id LIMIT $4";

/// As with letters, those of no device are on the first page alone.
const NOT_KEPT: &str = "SELECT device_id, \
         sum(CASE WHEN kind = 'dead_letters' THEN dropped ELSE 0 END)::INT8, \
         sum(CASE WHEN kind = 'conflicts' THEN dropped ELSE 0 END)::INT8 \
     FROM kept_aside WHERE dropped_at > $1 AND dropped_at IS NOT NULL \
         AND (device_id > $2 OR $2 = '') \
     GROUP BY device_id ORDER BY device_id LIMIT $3";

/// A round that takes long does not make older what a later one has seen.
const RAISE: &str = "INSERT INTO alerts (id, rule, device_id, detail, opened_at, last_seen_at) \
     SELECT f.value ->> 0, $2::TEXT, f.value ->> 1, f.value ->> 2, $3::TIMESTAMPTZ, $3::TIMESTAMPTZ \
     FROM jsonb_array_elements($1::TEXT::JSONB) AS f (value) WHERE true \
     ON CONFLICT (rule, device_id) WHERE resolved_at IS NULL DO UPDATE SET \
         detail = excluded.detail, \
         last_seen_at = greatest(alerts.last_seen_at, excluded.last_seen_at)";

const RESOLVE_UNSEEN: &str = "UPDATE alerts SET resolved_at = $2 \
     WHERE rule = $1 AND resolved_at IS NULL AND last_seen_at < $3";

macro_rules! alert_columns {
    ($rest:expr) => {
        concat!(
            "SELECT id, rule, device_id, detail, opened_at, last_seen_at, acknowledged_at, \
             acknowledged_by, resolved_at FROM alerts ",
            $rest
        )
    };
}

const ONE: &str = alert_columns!("WHERE id = $1");

/// A page behind $1 and $2 in state $3, of which `$which` says more.
macro_rules! alert_page {
    ($which:literal) => {
        alert_columns!(concat!(
            "WHERE (opened_at, id) < ($1, $2) \
                 AND ($3 = '' OR CASE WHEN resolved_at IS NOT NULL THEN 'resolved' \
                     WHEN acknowledged_at IS NOT NULL THEN 'acknowledged' ELSE 'firing' END = $3) ",
            $which,
            " ORDER BY opened_at DESC, id DESC LIMIT $4"
        ))
    };
}

const LATEST: &str = alert_page!("");

const OPEN_LATEST: &str = alert_page!("AND resolved_at IS NULL");

const OF_DEVICE: &str = alert_page!("AND device_id = $5");

const ACKNOWLEDGE: &str = "UPDATE alerts SET acknowledged_at = $2, acknowledged_by = $3 \
     WHERE id = $1 AND acknowledged_at IS NULL AND resolved_at IS NULL";

const FIRING: &str =
    "SELECT count(*) FROM alerts WHERE resolved_at IS NULL AND acknowledged_at IS NULL";

pub(crate) const FORGET: &str =
    "DELETE FROM alerts WHERE resolved_at < $1 AND resolved_at IS NOT NULL";

#[async_trait]
impl<D: Database> AlertStore for D {
    async fn begin_alert_round(
        &self,
        now: ReceivedAt,
        interval: Duration,
    ) -> Result<bool, StoreError> {
        let begun = self.execute(BEGIN, cells![now, now.minus(interval)]);
        Ok(begun.await? > 0)
    }

    async fn findings(
        &self,
        rule: Rule,
        now: ReceivedAt,
        bounds: &AlertBounds,
        after: Option<&DeviceId>,
    ) -> Result<Vec<Finding>, StoreError> {
        let after = || after.map_or("", DeviceId::as_str);
        let since = |age| now.minus(age);
        let most = page_limit(FINDINGS_MAX);
        let (sql, cells, read): (_, _, Read<Finding>) = match rule {
            Rule::ReadingsUnaccounted | Rule::StoreRefuses => return Ok(Vec::new()),
            Rule::DeviceOffline => {
                return match after() {
                    "" => offline(self, now, since(bounds.offline_after)).await,
                    _ => Ok(Vec::new()),
                };
            }
            Rule::DeadLetters => (
                LETTERS,
                cells![since(bounds.letter_age), after(), most],
                |row| finding(row, detail::letters(row.number(1)?)),
            ),
            Rule::SettingNotInForce => (SETTINGS, cells![after(), most], |row| {
                finding(row, detail::settings(&row.text(1)?, row.number(2)?))
            }),
            Rule::ClockSkewed => {
                let skew = u64::try_from(bounds.skew_max.as_millis()).unwrap_or(u64::MAX);
                (
                    SKEWED,
                    cells![since(SKEW_AGE), skew, after(), most],
                    |row| finding(row, detail::skewed(row.int(1)?, row.time(2)?)),
                )
            }
            Rule::QuotaExceeded => (
                NOT_KEPT,
                cells![since(bounds.letter_age), after(), most],
                |row| finding(row, detail::not_kept(row.number(1)?, row.number(2)?)),
            ),
        };
        self.list(Access::Read, sql, cells, read).await
    }

    async fn raise(
        &self,
        rule: Rule,
        findings: &[Finding],
        now: ReceivedAt,
    ) -> Result<(), StoreError> {
        let named = serde_json::Value::from_iter(findings.iter().map(named));
        let cells = cells![named.to_string(), rule.as_str(), now];
        self.execute(RAISE, cells).await.map(drop)
    }

    async fn resolve_alerts(&self, rule: Rule, now: ReceivedAt) -> Result<u64, StoreError> {
        self.resolve_unseen_alerts(rule, now, now).await
    }

    async fn resolve_unseen_alerts(
        &self,
        rule: Rule,
        unseen_since: ReceivedAt,
        now: ReceivedAt,
    ) -> Result<u64, StoreError> {
        self.execute(RESOLVE_UNSEEN, cells![rule.as_str(), now, unseen_since])
            .await
    }

    async fn alerts(&self, query: &AlertQuery) -> Result<Vec<Alert>, StoreError> {
        let (at, id) = match &query.after {
            Some((at, id)) => (*at, id.as_str()),
            // Behind every name.
            None => (ReceivedAt::from_micros(i64::MAX), "g"),
        };
        let state = query.state.map_or("", |state| state.as_str());
        let mut cells = cells![at, id, state, page_limit(query.limit)];
        let sql = match (&query.device, query.state) {
            (Some(device), _) => {
                cells.push(device.into());
                OF_DEVICE
            }
            (None, None | Some(AlertState::Resolved)) => LATEST,
            (None, Some(AlertState::Firing | AlertState::Acknowledged)) => OPEN_LATEST,
        };
        self.list(Access::Read, sql, cells, alert).await
    }

    async fn alert(&self, id: &str) -> Result<Option<Alert>, StoreError> {
        self.first(Access::Read, ONE, cells![id], alert).await
    }

    async fn acknowledge_alert(
        &self,
        id: &str,
        by: &str,
        now: ReceivedAt,
    ) -> Result<(), StoreError> {
        self.execute(ACKNOWLEDGE, cells![id, now, by])
            .await
            .map(drop)
    }

    async fn alerts_firing(&self) -> Result<u64, StoreError> {
        let counted = self.first(Access::Read, FIRING, cells![], |row| row.number(0));
        Ok(counted.await?.unwrap_or_default())
    }

    async fn forget_alerts(&self, before: ReceivedAt) -> Result<u64, StoreError> {
        self.execute(FORGET, cells![before]).await
    }
}

/// A finding with a name, its device as text, and what it says.
fn named(Finding { device, detail }: &Finding) -> serde_json::Value {
    let id = format!("{:032x}", rand::random::<u128>());
    let device = device.as_ref().map_or("", DeviceId::as_str);
    serde_json::json!([id, device, detail])
}

fn finding(row: &dyn Row, detail: String) -> Result<Finding, StoreError> {
    Ok(Finding {
        device: row.maybe_device(0)?,
        detail,
    })
}

fn alert(row: &dyn Row) -> Result<Alert, StoreError> {
    let rule = row.text(1)?;
    Ok(Alert {
        id: row.text(0)?,
        rule: Rule::parse(&rule).ok_or_else(|| unreadable("rule of an alert", rule))?,
        finding: Finding {
            device: row.maybe_device(2)?,
            detail: row.text(3)?,
        },
        opened_at: row.time(4)?,
        last_seen_at: row.time(5)?,
        acknowledged: row.maybe_time(6)?.zip(row.maybe_text(7)?),
        resolved_at: row.maybe_time(8)?,
    })
}

/// The texts of findings.
mod detail {
    use schema::time::ReceivedAt;

    pub(super) fn offline(last_seen: ReceivedAt) -> String {
        format!("not heard of since {}", schema::rfc3339(last_seen.micros()))
    }

    pub(super) fn letters(count: u64) -> String {
        format!("{count} payloads could not be used; see the dead letters")
    }

    pub(super) fn not_kept(letters: u64, losers: u64) -> String {
        let mut kinds = Vec::new();
        if letters > 0 {
            kinds.push(format!("{letters} payloads that could not be used"));
        }
        if losers > 0 {
            kinds.push(format!("{losers} versions that lost"));
        }
        format!(
            "no copy was kept of {}: a quota is used up",
            kinds.join(" and ")
        )
    }

    pub(super) fn settings(key: &str, count: u64) -> String {
        match count {
            0 | 1 => format!("{key} is not in force"),
            _ => format!("{key} and {} more are not in force", count - 1),
        }
    }

    pub(super) fn skewed(device_ms: i64, reported_at: ReceivedAt) -> String {
        let ahead = device_ms.saturating_sub(reported_at.micros() / 1000) / 1000;
        match ahead < 0 {
            true => format!("its clock is {} s behind", ahead.unsigned_abs()),
            false => format!("its clock is {ahead} s ahead"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_were_written() {
        for rule in Rule::ALL {
            assert_eq!(Rule::parse(rule.as_str()), Some(rule));
        }
        assert_eq!(Rule::parse("else"), None);
    }

    #[test]
    fn findings_say_what_is_wrong() {
        let at = ReceivedAt::from_micros(1_790_000_000_000_000);
        assert_eq!(
            detail::skewed(1_790_000_600_000, at),
            "its clock is 600 s ahead"
        );
        assert_eq!(
            detail::skewed(1_789_999_400_000, at),
            "its clock is 600 s behind"
        );
        assert_eq!(
            detail::settings("log.level", 1),
            "log.level is not in force"
        );
        assert_eq!(detail::settings("a", 3), "a and 2 more are not in force");
        assert_eq!(
            detail::not_kept(7, 0),
            "no copy was kept of 7 payloads that could not be used: a quota is used up"
        );
    }
}
