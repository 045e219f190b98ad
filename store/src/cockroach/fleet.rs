//! Devices: by id and by label, their labels, and retirement.

use async_trait::async_trait;
use schema::DeviceId;
use schema::time::ReceivedAt;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Connection as _, Executor as _, Postgres, Row as _};

use super::super::commands::{STEP_ENDED, STEP_SENT};
use super::super::fleet::{Author, DeviceFilter, FleetSize, FleetStore, Labelled, Retired};
use super::super::labels::{
    LABELS_MAX, LabelChanges, LabelKey, LabelValue, Labels, changed, from_json, group_of,
};
use super::super::{Device, StoreError};
use super::arguments::Micros;
use super::dialect::Purpose;
use super::ingest::micros;
use super::query::limited;
use super::{Cockroach, groups, rows};

macro_rules! device_columns {
    ($cutoff:literal, $rest:literal) => {
        concat!(
            "SELECT d.device_id, d.first_seen, ",
            last_seen!(),
            ", ",
            is_online!($cutoff),
            ", d.agent_version, d.epoch, \
                 (SELECT json_object_agg(l.key, l.value)::TEXT FROM device_labels AS l \
                     WHERE l.device_id = d.device_id), d.retired_at ",
            $rest
        )
    };
}

const ONE: &str = device_columns!("$2", "FROM devices AS d WHERE d.device_id = $1");

pub(super) const DEVICES: &str = device_columns!(
    "$3",
    "FROM devices AS d WHERE d.device_id > $1 ORDER BY d.device_id LIMIT $2"
);

/// $1 behind, $2 and $3 the prefix and its end, $4 online, $5 retired, $6 how many; last the time since which a device
/// must have been heard of to be online.
macro_rules! filtered {
    ($online:expr, $($columns:tt)+) => {
        concat!(
            $($columns)+,
            "FROM devices AS d WHERE d.device_id > $1 AND d.device_id >= $2 AND d.device_id < $3 \
                 AND ($4::BOOL IS NULL OR ",
            $online,
            " = $4) \
                 AND ($5::BOOL IS NULL OR (d.retired_at IS NOT NULL) = $5) \
             ORDER BY d.device_id LIMIT $6"
        )
    };
}

/// The same, and labels. One, $7 and $8, leads in the order of the devices; the others, $9 and $10,
/// $11 of them, are looked up at each device.
macro_rules! labelled {
    ($online:expr, $($columns:tt)+) => {
        concat!(
            $($columns)+,
            "FROM device_labels AS f JOIN devices AS d ON d.device_id = f.device_id \
             WHERE f.key = $7 AND f.value = $8 AND f.device_id > $1 AND f.device_id >= $2 \
                 AND f.device_id < $3 AND (SELECT count(*) \
                     FROM unnest($9::TEXT[], $10::TEXT[]) AS w (key, value) \
                     JOIN device_labels AS o ON o.device_id = f.device_id AND o.key = w.key \
                     WHERE o.value = w.value) = $11::INT8 \
                 AND ($4::BOOL IS NULL OR ",
            $online,
            " = $4) \
                 AND ($5::BOOL IS NULL OR (d.retired_at IS NOT NULL) = $5) \
             ORDER BY f.device_id LIMIT $6"
        )
    };
}

pub(super) const FILTERED: &str = filtered!(is_online!("$7"), device_columns!("$7", ""));
pub(super) const LABELLED: &str = labelled!(is_online!("$12"), device_columns!("$12", ""));

/// Within a transaction that writes: it must not be in the way of ingest, whose times the columns
/// of a device show. Nothing is picked there by who is online.
const FILTERED_IDS: &str = filtered!("d.online", "SELECT d.device_id ");
pub(super) const LABELLED_IDS: &str = labelled!("d.online", "SELECT d.device_id ");

const IS_KNOWN: &str = "SELECT 1 FROM devices WHERE device_id = $1";

const LABELS: &str = "SELECT json_object_agg(key, value)::TEXT FROM device_labels \
     WHERE device_id = $1";

const MEET: &str = "INSERT INTO devices (device_id, first_seen, last_seen, online) \
     VALUES ($1, $2, $2, false) ON CONFLICT (device_id) DO NOTHING";

const UNLABEL: &str = "DELETE FROM device_labels WHERE device_id = $1 AND key = ANY($2)";

const LABEL: &str = "INSERT INTO device_labels (device_id, key, value) \
     SELECT $1::TEXT, key, value FROM unnest($2::TEXT[], $3::TEXT[]) AS l (key, value) \
     ON CONFLICT (device_id, key) DO UPDATE SET value = excluded.value";

const RETIRE: &str = "UPDATE devices SET retired_at = $2 \
     WHERE device_id = $1 AND retired_at IS NULL";

const REINSTATE: &str = "UPDATE devices SET retired_at = NULL WHERE device_id = $1";

/// What was never sent ends here; what was sent is given up, and the device's word on it, should one
/// come, still counts.
const CANCEL_ALL: &str = "UPDATE commands SET state = 'cancelled', ended_at = $2, due_at = NULL, \
         step = CASE WHEN step = 0 THEN $3::INT8 ELSE $4::INT8 END \
     WHERE device_id = $1 AND due_at IS NOT NULL AND step <= $4::INT8";

/// Nor is it told to stop what it has.
const TELL_NOTHING: &str = "UPDATE commands SET due_at = NULL \
     WHERE device_id = $1 AND due_at IS NOT NULL";

const SIZE: &str = concat!(
    "SELECT count(*), coalesce(sum(CASE WHEN ",
    is_online!("$1"),
    " THEN 1 ELSE 0 END), 0)::INT8, \
     coalesce(sum(CASE WHEN d.retired_at IS NULL THEN 0 ELSE 1 END), 0)::INT8 FROM devices AS d"
);

/// What it has is asked after again.
const ASK_AFTER: &str = "UPDATE commands SET due_at = coalesce(heard_at, created_at) \
     WHERE device_id = $1 AND step > 1 AND ended_at IS NULL AND due_at IS NULL";

#[async_trait]
impl FleetStore for Cockroach {
    async fn devices(
        &self,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<Device>, StoreError> {
        run!(self, &mut self.budget(), Purpose::ReadStale, |connection| {
            let after = after.map_or("", DeviceId::as_str);
            let query = sqlx::query(DEVICES).bind(after).bind(limited(limit));
            let query = query.bind(self.cutoff());
            let found = connection.fetch_all(query).await?;
            found.iter().map(device).collect()
        })
    }

    async fn device(&self, id: &DeviceId) -> Result<Option<Device>, StoreError> {
        run!(self, &mut self.budget(), Purpose::ReadStale, |connection| {
            one(connection, id, self.cutoff()).await
        })
    }

    async fn find_devices(&self, filter: &DeviceFilter) -> Result<Vec<Device>, StoreError> {
        run!(self, &mut self.budget(), Purpose::ReadStale, |connection| {
            find(connection, filter, self.cutoff()).await
        })
    }

    async fn change_labels(
        &self,
        id: &DeviceId,
        changes: &LabelChanges,
        author: &Author,
    ) -> Result<Labelled, StoreError> {
        let done = run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let mut transaction = connection.begin().await?;
            let meet = sqlx::query(MEET).bind(id.as_str()).bind(micros(author.at));
            transaction.execute(meet).await?;
            let query = sqlx::query(LABELS).bind(id.as_str());
            let known = labels(&transaction.fetch_one(query).await?, 0)?;
            let wanted = changed(known.clone(), changes);
            if wanted.len() > LABELS_MAX {
                return Ok(None);
            }
            label(&mut transaction, id, changes).await?;
            let (left, joined) = (group_of(&known), group_of(&wanted));
            let is_configured = left != joined
                && groups::change_over(&mut transaction, id, left, joined, author).await?;
            transaction.commit().await?;
            Ok(Some(is_configured))
        })?;
        let Some(is_configured) = done else {
            return Ok(Labelled::TooMany);
        };
        Ok(Labelled::Done {
            device: self.now(id).await?,
            is_configured,
        })
    }

    async fn retire(&self, id: &DeviceId, now: ReceivedAt) -> Result<Option<Retired>, StoreError> {
        let cancelled = run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let mut transaction = connection.begin().await?;
            if !is_known(&mut transaction, id).await? {
                return Ok(None);
            }
            let retire = sqlx::query(RETIRE).bind(id.as_str()).bind(micros(now));
            transaction.execute(retire).await?;
            let cancel = sqlx::query(CANCEL_ALL).bind(id.as_str()).bind(micros(now));
            let cancel = cancel.bind(STEP_ENDED).bind(STEP_SENT);
            let cancelled = transaction.execute(cancel).await?.rows_affected();
            let tell = sqlx::query(TELL_NOTHING).bind(id.as_str());
            transaction.execute(tell).await?;
            transaction.commit().await?;
            Ok(Some(cancelled))
        })?;
        let Some(cancelled) = cancelled else {
            return Ok(None);
        };
        let device = self.now(id).await?;
        Ok(Some(Retired { device, cancelled }))
    }

    async fn fleet_size(&self) -> Result<FleetSize, StoreError> {
        run!(self, &mut self.budget(), Purpose::ReadStale, |connection| {
            let size = sqlx::query(SIZE).bind(self.cutoff());
            let row = connection.fetch_one(size).await?;
            Ok(FleetSize {
                devices: rows::number(&row, 0)?,
                online: rows::number(&row, 1)?,
                retired: rows::number(&row, 2)?,
            })
        })
    }

    async fn reinstate(&self, id: &DeviceId) -> Result<Option<Device>, StoreError> {
        let known = run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let mut transaction = connection.begin().await?;
            let reinstate = sqlx::query(REINSTATE).bind(id.as_str());
            let known = transaction.execute(reinstate).await?.rows_affected();
            let ask = sqlx::query(ASK_AFTER).bind(id.as_str());
            transaction.execute(ask).await?;
            transaction.commit().await?;
            Ok(known)
        })?;
        match known {
            0 => Ok(None),
            _ => self.now(id).await.map(Some),
        }
    }
}

impl Cockroach {
    /// A device of which nothing was heard since is not online.
    pub(super) fn cutoff(&self) -> Micros {
        micros(self.silence.cutoff(&self.clock))
    }

    /// A device that is known, as it is now.
    async fn now(&self, id: &DeviceId) -> Result<Device, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let found = one(connection, id, self.cutoff()).await?;
            found.ok_or(sqlx::Error::RowNotFound)
        })
    }
}

async fn is_known(connection: &mut PgConnection, id: &DeviceId) -> Result<bool, sqlx::Error> {
    let query = sqlx::query(IS_KNOWN).bind(id.as_str());
    Ok(connection.fetch_optional(query).await?.is_some())
}

async fn one(
    connection: &mut PgConnection,
    id: &DeviceId,
    cutoff: Micros,
) -> Result<Option<Device>, sqlx::Error> {
    let query = sqlx::query(ONE).bind(id.as_str()).bind(cutoff);
    let found = connection.fetch_optional(query).await?;
    found.as_ref().map(device).transpose()
}

async fn find(
    connection: &mut PgConnection,
    filter: &DeviceFilter,
    cutoff: Micros,
) -> Result<Vec<Device>, sqlx::Error> {
    let query = filter_query(filter, FILTERED, LABELLED).bind(cutoff);
    let found = connection.fetch_all(query).await?;
    found.iter().map(device).collect()
}

/// The devices that a filter lets through.
pub(super) async fn find_ids(
    connection: &mut PgConnection,
    filter: &DeviceFilter,
) -> Result<Vec<DeviceId>, sqlx::Error> {
    let query = filter_query(filter, FILTERED_IDS, LABELLED_IDS);
    let found = connection.fetch_all(query).await?;
    found.iter().map(|row| rows::device(row, 0)).collect()
}

fn filter_query<'q>(
    filter: &'q DeviceFilter,
    without_labels: &'static str,
    with_labels: &'static str,
) -> Query<'q, Postgres, PgArguments> {
    let mut labels = filter.labels.iter();
    let lead = labels.next();
    let query = sqlx::query(match lead {
        Some(_) => with_labels,
        None => without_labels,
    });
    let query = query
        .bind(filter.after.as_ref().map_or("", DeviceId::as_str))
        .bind(&filter.prefix)
        .bind(filter.prefix_end())
        .bind(filter.online)
        .bind(filter.retired)
        .bind(limited(filter.limit));
    let Some((key, value)) = lead else {
        return query;
    };
    let (keys, values): (Vec<&str>, Vec<&str>) = labels
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .unzip();
    let count = limited(keys.len());
    query
        .bind(key.as_str())
        .bind(value.as_str())
        .bind(keys)
        .bind(values)
        .bind(count)
}

async fn label(
    connection: &mut PgConnection,
    id: &DeviceId,
    changes: &LabelChanges,
) -> Result<(), sqlx::Error> {
    let gone = changes.iter().filter(|(_, value)| value.is_none());
    let gone: Vec<&str> = gone.map(|(key, _)| key.as_str()).collect();
    if !gone.is_empty() {
        let unlabel = sqlx::query(UNLABEL).bind(id.as_str()).bind(gone);
        connection.execute(unlabel).await?;
    }
    let set = |(key, value): (&'_ LabelKey, &'_ Option<LabelValue>)| {
        let value = value.as_ref()?;
        Some((key.as_str().to_owned(), value.as_str().to_owned()))
    };
    let (keys, values): (Vec<String>, Vec<String>) = changes.iter().filter_map(set).unzip();
    if !keys.is_empty() {
        let label = sqlx::query(LABEL).bind(id.as_str()).bind(keys).bind(values);
        connection.execute(label).await?;
    }
    Ok(())
}

/// From the eight columns of a device.
fn device(row: &PgRow) -> Result<Device, sqlx::Error> {
    let epoch: Option<i64> = row.try_get(5)?;
    Ok(Device {
        device: rows::device(row, 0)?,
        first_seen: rows::received(row, 1)?,
        last_seen: rows::received(row, 2)?,
        online: row.try_get(3)?,
        agent_version: row.try_get(4)?,
        epoch: epoch.map(|_| rows::epoch(row, 5)).transpose()?,
        labels: labels(row, 6)?,
        retired_at: rows::maybe_received(row, 7)?,
    })
}

fn labels(row: &PgRow, at: usize) -> Result<Labels, sqlx::Error> {
    from_json(row.try_get(at)?).map_err(rows::bad(at))
}
