//! Which devices are offline: found without reading all of them.
//!
//! ```text
//! said good-bye, or a will was told   by the index of these alone
//! found before, and not heard since   by their open alerts
//! fell silent without a word          a part of the fleet with each look, in turn
//! ```
//!
//! A sign of life is a commit's, and no index follows it: it would cost each commit more than these looks cost.

use std::collections::BTreeMap;
use std::time::Duration;

use schema::DeviceId;
use schema::time::ReceivedAt;

use super::{FINDINGS_MAX, Finding, detail};
use crate::StoreError;
use crate::rounds::{Round, RoundStore as _};
use crate::sql::{Access, Database, cells, page_limit};

/// Devices that are there by their last message, and of which one look asks whether they were heard of. In a fleet of so
/// many a silent one is found by the next look, in a larger one by a later one.
pub const SWEEP_DEVICES: usize = 2_000;

/// What makes a device offline: it was born once and gave no sign of life since, whatever its last message was.
macro_rules! is_away {
    () => {
        concat!(
            "d.session IS NOT NULL AND d.retired_at IS NULL AND NOT ",
            is_heard!("$1")
        )
    };
}

/// Those whose last message was good-bye, or was said for them.
const GONE: &str = concat!(
    "SELECT d.device_id, ",
    last_seen!(),
    " FROM (SELECT * FROM devices \
         WHERE NOT online AND retired_at IS NULL AND device_id > $2) AS d WHERE ",
    is_away!(),
    " ORDER BY d.device_id LIMIT $3"
);

/// Those that were found before.
const STILL: &str = concat!(
    "SELECT d.device_id, ",
    last_seen!(),
    " FROM (SELECT device_id FROM alerts WHERE rule = 'device_offline' \
         AND resolved_at IS NULL AND device_id > $2) AS a \
     JOIN devices AS d ON d.device_id = a.device_id WHERE ",
    is_away!(),
    " ORDER BY a.device_id LIMIT $3"
);

/// Each of some devices, with its last sign of life where that is too old.
const SWEEP: &str = concat!(
    "SELECT d.device_id, CASE WHEN ",
    is_away!(),
    " THEN ",
    last_seen!(),
    " END FROM (SELECT * FROM devices WHERE device_id > $2 \
         ORDER BY device_id LIMIT $3) AS d ORDER BY d.device_id"
);

/// Devices of which nothing was heard since a time.
pub(super) async fn offline<D: Database>(
    store: &D,
    now: ReceivedAt,
    since: ReceivedAt,
) -> Result<Vec<Finding>, StoreError> {
    let mut away: BTreeMap<DeviceId, ReceivedAt> = BTreeMap::new();
    for sql in [GONE, STILL] {
        let mut after = String::new();
        loop {
            let cells = cells![since, &after, page_limit(FINDINGS_MAX)];
            let page = store.list(Access::Read, sql, cells, |row| {
                Ok((row.device(0)?, row.time(1)?))
            });
            let page = page.await?;
            let is_last = page.len() < FINDINGS_MAX;
            if let Some((last, _)) = page.last() {
                after = last.to_string();
            }
            away.extend(page);
            if is_last {
                break;
            }
        }
    }
    let begun = store.begin_round(Round::Silence, now, Duration::ZERO);
    let mut place = begun.await?.unwrap_or_default();
    let mut left = SWEEP_DEVICES;
    // Of a small fleet all, wherever the last look ended.
    let mut may_wrap = !place.is_empty();
    while left > 0 {
        let cells = cells![since, &place, left];
        let page = store.list(Access::Read, SWEEP, cells, |row| {
            Ok((row.device(0)?, row.maybe_time(1)?))
        });
        let page = page.await?;
        let is_end = page.len() < left;
        left -= page.len().min(left);
        place = match page.last() {
            Some((last, _)) if !is_end => last.to_string(),
            _ => String::new(),
        };
        let silent = page.into_iter();
        away.extend(silent.filter_map(|(device, seen)| Some((device, seen?))));
        if is_end && !std::mem::take(&mut may_wrap) {
            break;
        }
    }
    store.keep_round(Round::Silence, &place, now).await?;
    let finding = |(device, last_seen)| Finding {
        device: Some(device),
        detail: detail::offline(last_seen),
    };
    Ok(away.into_iter().map(finding).collect())
}
