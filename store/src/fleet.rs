//! The fleet as people see it: which devices there are, their labels, and which are retired.
//!
//! A retired device is left out of fan-outs and gets nothing sent: what waited for it is cancelled.
//! What it still says is taken down all the same, because nothing accepted is lost.

use async_trait::async_trait;
use schema::time::ReceivedAt;
use schema::{DeviceId, Epoch};

use super::StoreError;
use super::commands::{STEP_ENDED, STEP_SENT};
use super::groups::change_over;
use super::labels::{LABELS_MAX, LabelChanges, Labels, changed, from_json, group_of};
use super::sql::{
    Access, Broken, Cell, Database, Port, Row, all, cells, first, limited, unreadable,
};

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its identity.
    pub device: DeviceId,
    /// When the bridge first heard of it.
    pub first_seen: ReceivedAt,
    /// When the bridge last heard of it: presence, report or readings.
    pub last_seen: ReceivedAt,
    /// Whether its last message on `up/status` was a birth, and it gave a sign of life lately
    /// ([`Store::set_offline_after`](super::Store::set_offline_after)).
    pub online: bool,
    /// The agent's version, from its last birth.
    pub agent_version: Option<String>,
    /// The epoch in use, from its last birth.
    pub epoch: Option<Epoch>,
    /// What people call it by.
    pub labels: Labels,
    /// Since when it is retired.
    pub retired_at: Option<ReceivedAt>,
}

/// The fleet's part of a store.
#[async_trait]
pub trait FleetStore: Send + Sync {
    /// The devices by id, behind `after`, retired ones included.
    async fn devices(
        &self,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<Device>, StoreError>;

    /// One device, if the database has ever heard of it.
    async fn device(&self, device: &DeviceId) -> Result<Option<Device>, StoreError>;

    /// The devices that a filter lets through, by id.
    async fn find_devices(&self, filter: &DeviceFilter) -> Result<Vec<Device>, StoreError>;

    /// Changes labels; a device that is not known yet is added. One that joins or leaves
    /// a group has its configuration changed in the same commit.
    async fn change_labels(
        &self,
        device: &DeviceId,
        changes: &LabelChanges,
        author: &Author,
    ) -> Result<Labelled, StoreError>;

    /// Retires a device and cancels what waits for it, in one commit. `None` when it is unknown.
    async fn retire(
        &self,
        device: &DeviceId,
        now: ReceivedAt,
    ) -> Result<Option<Retired>, StoreError>;

    /// How many devices there are.
    async fn fleet_size(&self) -> Result<FleetSize, StoreError>;

    /// Takes a retired device back. `None` when it is unknown.
    async fn reinstate(&self, device: &DeviceId) -> Result<Option<Device>, StoreError>;
}

/// Which devices to return.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceFilter {
    /// All of these hold.
    pub labels: Labels,
    /// Only those that are, or are not, online.
    pub online: Option<bool>,
    /// Only those that are, or are not, retired.
    pub retired: Option<bool>,
    /// The id begins so.
    pub prefix: String,
    /// Behind this one.
    pub after: Option<DeviceId>,
    /// At most so many, capped at [`super::QUERY_ROWS_MAX`].
    pub limit: usize,
}

/// Counts of devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FleetSize {
    /// All of them.
    pub devices: u64,
    /// Those that are online.
    pub online: u64,
    /// Those that are retired.
    pub retired: u64,
}

/// Who changes something, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    /// The name of the caller.
    pub name: String,
    /// When it was asked for, by the database\'s time.
    pub at: ReceivedAt,
}

/// What became of a change of labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Labelled {
    /// Done.
    Done {
        /// As it is now.
        device: Device,
        /// Its configuration has changed with its group.
        is_configured: bool,
    },
    /// Nothing was done: the device would have more than [`super::labels::LABELS_MAX`].
    TooMany,
}

/// What retiring did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retired {
    /// As it is now.
    pub device: Device,
    /// Commands that were cancelled.
    pub cancelled: u64,
}

impl DeviceFilter {
    /// Behind every id that begins with the prefix: no id has a character as late as this one.
    pub(crate) fn prefix_end(&self) -> String {
        format!("{}~", self.prefix)
    }
}

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

/// Ids alone, by which retention goes through all devices.
pub(crate) const DEVICE_IDS: &str =
    "SELECT device_id FROM devices WHERE device_id > $1 ORDER BY device_id LIMIT $2";

pub(crate) const DEVICES: &str = device_columns!(
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

/// The same, and labels. One, $7 and $8, leads in the order of the devices; the others, pairs in $9, $10 of them, are
/// looked up at each device: each by itself, so that it is found by its key.
macro_rules! labelled {
    ($online:expr, $($columns:tt)+) => {
        concat!(
            $($columns)+,
            "FROM device_labels AS f JOIN devices AS d ON d.device_id = f.device_id \
             WHERE f.key = $7 AND f.value = $8 AND f.device_id > $1 AND f.device_id >= $2 \
                 AND f.device_id < $3 AND (SELECT count(*) \
                     FROM jsonb_array_elements($9::TEXT::JSONB) AS w (value) \
                     WHERE (SELECT o.value FROM device_labels AS o \
                         WHERE o.device_id = f.device_id AND o.key = w.value ->> 0) \
                             = w.value ->> 1) = $10::INT8 \
                 AND ($4::BOOL IS NULL OR ",
            $online,
            " = $4) \
                 AND ($5::BOOL IS NULL OR (d.retired_at IS NOT NULL) = $5) \
             ORDER BY f.device_id LIMIT $6"
        )
    };
}

pub(crate) const FILTERED: &str = filtered!(is_online!("$7"), device_columns!("$7", ""));
pub(crate) const LABELLED: &str = labelled!(is_online!("$11"), device_columns!("$11", ""));

/// Within a transaction that writes: it must not be in the way of ingest, whose times the columns
/// of a device show. Nothing is picked there by who is online.
const FILTERED_IDS: &str = filtered!("d.online", "SELECT d.device_id ");
pub(crate) const LABELLED_IDS: &str = labelled!("d.online", "SELECT d.device_id ");

const IS_KNOWN: &str = "SELECT 1 FROM devices WHERE device_id = $1";

const IS_RETIRED: &str = "SELECT 1 FROM devices WHERE device_id = $1 AND retired_at IS NOT NULL";

const LABELS: &str = "SELECT json_object_agg(key, value)::TEXT FROM device_labels \
     WHERE device_id = $1";

const MEET: &str = "INSERT INTO devices (device_id, first_seen, last_seen, online) \
     VALUES ($1, $2, $2, false) ON CONFLICT (device_id) DO NOTHING";

const UNLABEL: &str = "DELETE FROM device_labels WHERE device_id = $1 AND key = ANY($2)";

const LABEL: &str = "INSERT INTO device_labels (device_id, key, value) \
     SELECT $1::TEXT, l.value ->> 0, l.value ->> 1 \
     FROM jsonb_array_elements($2::TEXT::JSONB) AS l (value) WHERE true \
     ON CONFLICT (device_id, key) DO UPDATE SET value = excluded.value";

const RETIRE: &str = "UPDATE devices SET retired_at = $2 \
     WHERE device_id = $1 AND retired_at IS NULL";

const REINSTATE: &str = "UPDATE devices SET retired_at = NULL WHERE device_id = $1";

/// What was never sent ends here; what was sent is given up, and the device's report on it, should one
/// come, still counts.
const CANCEL_ALL: &str = "UPDATE commands SET state = 'cancelled', ended_at = $2, due_at = NULL, \
         step = CASE WHEN step = 0 THEN $3::INT8 ELSE $4::INT8 END \
     WHERE device_id = $1 AND due_at IS NOT NULL AND step <= $4::INT8";

/// Nothing more is sent for commands of a retired device, not even that they are withdrawn.
const SEND_NOTHING: &str = "UPDATE commands SET due_at = NULL \
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
impl<D: Database> FleetStore for D {
    async fn devices(
        &self,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<Device>, StoreError> {
        let after = after.map_or("", DeviceId::as_str);
        let cells = cells![after, limited(limit), self.cutoff()];
        devices(self, DEVICES, cells).await
    }

    async fn device(&self, id: &DeviceId) -> Result<Option<Device>, StoreError> {
        let cells = cells![id, self.cutoff()];
        self.first(Access::ReadStale, ONE, cells, device).await
    }

    async fn find_devices(&self, filter: &DeviceFilter) -> Result<Vec<Device>, StoreError> {
        let (sql, mut cells) = filter_query(filter, FILTERED, LABELLED);
        cells.extend(cells![self.cutoff()]);
        devices(self, sql, cells).await
    }

    async fn change_labels(
        &self,
        id: &DeviceId,
        changes: &LabelChanges,
        author: &Author,
    ) -> Result<Labelled, StoreError> {
        let input = (id.clone(), changes.clone(), author.clone());
        let done = self.run(Access::Transaction, input, |port, (id, changes, author)| {
            Box::pin(label(port, id, changes, author))
        });
        let Some(is_configured) = done.await? else {
            return Ok(Labelled::TooMany);
        };
        Ok(Labelled::Done {
            device: now(self, id).await?,
            is_configured,
        })
    }

    async fn retire(&self, id: &DeviceId, at: ReceivedAt) -> Result<Option<Retired>, StoreError> {
        let done = self.run(Access::Transaction, (id.clone(), at), |port, (id, at)| {
            Box::pin(retire(port, id, *at))
        });
        let Some(cancelled) = done.await? else {
            return Ok(None);
        };
        let device = now(self, id).await?;
        Ok(Some(Retired { device, cancelled }))
    }

    async fn fleet_size(&self) -> Result<FleetSize, StoreError> {
        let counted = self.first(Access::ReadStale, SIZE, cells![self.cutoff()], |row| {
            Ok(FleetSize {
                devices: row.number(0)?,
                online: row.number(1)?,
                retired: row.number(2)?,
            })
        });
        Ok(counted.await?.unwrap_or_default())
    }

    async fn reinstate(&self, id: &DeviceId) -> Result<Option<Device>, StoreError> {
        let known = self.run(Access::Transaction, id.clone(), |port, id| {
            Box::pin(async move {
                let known = port.execute(REINSTATE, cells![id]).await?;
                port.execute(ASK_AFTER, cells![id]).await?;
                Ok(known > 0)
            })
        });
        match known.await? {
            true => now(self, id).await.map(Some),
            false => Ok(None),
        }
    }
}

/// Whether a device is retired.
pub(crate) async fn is_retired(port: &mut dyn Port, id: &DeviceId) -> Result<bool, Broken> {
    let found = first(port, IS_RETIRED, cells![id], |_| Ok(()));
    Ok(found.await?.is_some())
}

/// The ids that a filter lets through.
pub(crate) async fn find_ids(
    port: &mut dyn Port,
    filter: &DeviceFilter,
) -> Result<Vec<DeviceId>, Broken> {
    let (sql, cells) = filter_query(filter, FILTERED_IDS, LABELLED_IDS);
    all(port, sql, cells, |row| row.device(0)).await
}

/// Every device that a query finds, or an error: a part would be taken for the whole fleet.
async fn devices<D: Database>(
    store: &D,
    sql: &'static str,
    cells: Vec<Cell>,
) -> Result<Vec<Device>, StoreError> {
    store
        .run(Access::ReadStale, (sql, cells), |port, (sql, cells)| {
            Box::pin(all(port, sql, cells.clone(), device))
        })
        .await
}

/// A device that is known, as it is now.
async fn now<D: Database>(store: &D, id: &DeviceId) -> Result<Device, StoreError> {
    let cells = cells![id, store.cutoff()];
    let found = store.first(Access::Read, ONE, cells, device).await?;
    found.ok_or_else(|| unreadable("device", "it is gone"))
}

/// Returns whether its configuration changed as well, or `None` when there would be too many.
async fn label(
    port: &mut dyn Port,
    id: &DeviceId,
    changes: &LabelChanges,
    author: &Author,
) -> Result<Option<bool>, Broken> {
    let known = first(port, LABELS, cells![id], |row| labels(row, 0)).await?;
    let known = known.unwrap_or_default();
    let wanted = changed(known.clone(), changes);
    if wanted.len() > LABELS_MAX {
        return Ok(None);
    }
    port.execute(MEET, cells![id, author.at]).await?;
    let (mut gone, mut set) = (Vec::new(), Vec::new());
    for (key, value) in changes {
        match value {
            Some(value) => set.push((key.as_str(), value.as_str())),
            None => gone.push(key.to_string()),
        }
    }
    if !gone.is_empty() {
        port.execute(UNLABEL, cells![id, gone]).await?;
    }
    if !set.is_empty() {
        let set = serde_json::json!(set).to_string();
        port.execute(LABEL, cells![id, set]).await?;
    }
    let (left, joined) = (group_of(&known), group_of(&wanted));
    let is_configured = left != joined && change_over(port, id, left, joined, author).await?;
    Ok(Some(is_configured))
}

/// Returns how many commands were cancelled, or `None` when nobody knows the device.
async fn retire(port: &mut dyn Port, id: &DeviceId, at: ReceivedAt) -> Result<Option<u64>, Broken> {
    let known = first(port, IS_KNOWN, cells![id], |_| Ok(()));
    if known.await?.is_none() {
        return Ok(None);
    }
    port.execute(RETIRE, cells![id, at]).await?;
    let cancel = cells![id, at, STEP_ENDED, STEP_SENT];
    let cancelled = port.execute(CANCEL_ALL, cancel).await?;
    port.execute(SEND_NOTHING, cells![id]).await?;
    Ok(Some(cancelled))
}

/// The statement of the two that a filter takes, and its cells but for the last, the time of being online.
fn filter_query(
    filter: &DeviceFilter,
    without_labels: &'static str,
    with_labels: &'static str,
) -> (&'static str, Vec<Cell>) {
    let mut cells = cells![
        filter.after.as_ref().map_or("", DeviceId::as_str),
        &filter.prefix,
        filter.prefix_end(),
        filter.online,
        filter.retired,
        limited(filter.limit),
    ];
    let mut labels = filter.labels.iter();
    let Some((key, value)) = labels.next() else {
        return (without_labels, cells);
    };
    let others: Vec<(&str, &str)> = labels
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    cells.extend(cells![
        key.as_str(),
        value.as_str(),
        serde_json::json!(others).to_string(),
        others.len(),
    ]);
    (with_labels, cells)
}

/// From the eight columns of a device.
fn device(row: &dyn Row) -> Result<Device, StoreError> {
    Ok(Device {
        device: row.device(0)?,
        first_seen: row.time(1)?,
        last_seen: row.time(2)?,
        online: row.bool(3)?,
        agent_version: row.maybe_text(4)?,
        epoch: row.maybe_epoch(5)?,
        labels: labels(row, 6)?,
        retired_at: row.maybe_time(7)?,
    })
}

fn labels(row: &dyn Row, at: usize) -> Result<Labels, StoreError> {
    let labels = row.maybe_text(at)?;
    from_json(labels.as_deref()).map_err(|error| unreadable("labels", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_behind_all_that_begin_with_it() {
        let end = |prefix: &str| {
            let filter = DeviceFilter {
                prefix: prefix.to_owned(),
                ..DeviceFilter::default()
            };
            filter.prefix_end()
        };
        for device in ["press", "press-7", "presszzz", "press_9"] {
            let device: DeviceId = device.parse().unwrap();
            assert!(device.as_str() < end("press").as_str() && device.as_str() < end("").as_str());
        }
        assert!("presst" > end("press").replace('~', "").as_str());
        assert!("prest" > end("press").as_str());
    }
}
