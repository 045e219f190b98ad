//! Devices in the file: by id and by label, their labels, and retirement.

use async_trait::async_trait;
use libsql::{Row, Value as Cell};
use schema::DeviceId;
use schema::time::ReceivedAt;

use super::super::commands::{STEP_ENDED, STEP_SENT};
use super::super::fleet::{Author, DeviceFilter, FleetSize, FleetStore, Labelled, Retired};
use super::super::labels::{LABELS_MAX, LabelChanges, changed, from_json, group_of, to_json};
use super::super::{Device, StoreError};
use super::file::File;
use super::query::limited;
use super::values::{self, bad, int, maybe, maybe_int, number, text_cell, time_cell};
use super::{Embedded, groups};

macro_rules! device_columns {
    ($cutoff:literal, $rest:literal) => {
        concat!(
            "SELECT d.device_id, d.first_seen, ",
            last_seen_in_file!(),
            ", ",
            is_online!($cutoff),
            ", d.agent_version, d.epoch, \
                 (SELECT json_group_object(l.key, l.value) FROM device_labels AS l \
                     WHERE l.device_id = d.device_id), d.retired_at ",
            $rest
        )
    };
}

const ONE: &str = device_columns!("?2", "FROM devices AS d WHERE d.device_id = ?1");

const DEVICES: &str = device_columns!(
    "?3",
    "FROM devices AS d WHERE d.device_id > ?1 ORDER BY d.device_id LIMIT ?2"
);

/// ?1 behind, ?2 and ?3 the prefix and its end, ?4 online, ?5 retired, ?7 since when a device must have been heard of to
/// be online.
macro_rules! passes {
    ($rest:literal) => {
        concat!(
            "d.device_id > ?1 AND d.device_id >= ?2 AND d.device_id < ?3 \
             AND (?4 IS NULL OR ",
            is_online!("?7"),
            " = ?4) \
             AND (?5 IS NULL OR (d.retired_at IS NOT NULL) = ?5) ",
            $rest
        )
    };
}

const FILTERED: &str = concat!(
    device_columns!("?7", "FROM devices AS d WHERE "),
    passes!("ORDER BY d.device_id LIMIT ?6")
);

/// One label leads, in the order of the devices; all are looked up at each device.
const LABELLED: &str = concat!(
    device_columns!(
        "?7",
        "FROM device_labels AS f JOIN devices AS d ON d.device_id = f.device_id \
         WHERE f.key = ?8 AND f.value = ?9 AND f.device_id > ?1 AND f.device_id >= ?2 \
             AND f.device_id < ?3 AND NOT EXISTS (SELECT 1 FROM json_each(?10) AS w \
                 WHERE NOT EXISTS (SELECT 1 FROM device_labels AS o \
                     WHERE o.device_id = f.device_id AND o.key = w.key AND o.value = w.value)) \
             AND "
    ),
    passes!("ORDER BY f.device_id LIMIT ?6")
);

const MEET: &str = "INSERT INTO devices (device_id, first_seen, last_seen, online) \
     VALUES (?1, ?2, ?2, 0) ON CONFLICT DO NOTHING";

const UNLABEL: &str = "DELETE FROM device_labels WHERE device_id = ?1 AND key = ?2";

const LABEL: &str = "INSERT INTO device_labels (device_id, key, value) VALUES (?1, ?2, ?3) \
     ON CONFLICT (device_id, key) DO UPDATE SET value = excluded.value";

const RETIRE: &str = "UPDATE devices SET retired_at = ?2 \
     WHERE device_id = ?1 AND retired_at IS NULL";

const REINSTATE: &str = "UPDATE devices SET retired_at = NULL WHERE device_id = ?1";

const IS_RETIRED: &str = "SELECT 1 FROM devices WHERE device_id = ?1 AND retired_at IS NOT NULL";

/// What was never sent ends here; what was sent is given up, and the device's word on it, should one
/// come, still counts.
const CANCEL_ALL: &str = "UPDATE commands SET state = 'cancelled', ended_at = ?2, due_at = NULL, \
         step = CASE WHEN step = 0 THEN ?3 ELSE ?4 END \
     WHERE device_id = ?1 AND due_at IS NOT NULL AND step <= ?4";

/// Nor is it told to stop what it has.
const TELL_NOTHING: &str = "UPDATE commands SET due_at = NULL \
     WHERE device_id = ?1 AND due_at IS NOT NULL";

const SIZE: &str = concat!(
    "SELECT count(*), coalesce(sum(CASE WHEN ",
    is_online!("?1"),
    " THEN 1 ELSE 0 END), 0), \
     coalesce(sum(CASE WHEN d.retired_at IS NULL THEN 0 ELSE 1 END), 0) FROM devices AS d"
);

/// What it has is asked after again.
const ASK_AFTER: &str = "UPDATE commands SET due_at = coalesce(heard_at, created_at) \
     WHERE device_id = ?1 AND step > 1 AND ended_at IS NULL AND due_at IS NULL";

#[async_trait]
impl FleetStore for Embedded {
    async fn devices(
        &self,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<Device>, StoreError> {
        let after = after.cloned();
        let cutoff = self.cutoff();
        self.read(move |file| devices(file, after.as_ref(), limit, cutoff))
            .await
    }

    async fn device(&self, device: &DeviceId) -> Result<Option<Device>, StoreError> {
        let device = device.clone();
        let cutoff = self.cutoff();
        self.read(move |file| one(file, &device, cutoff)).await
    }

    async fn find_devices(&self, filter: &DeviceFilter) -> Result<Vec<Device>, StoreError> {
        let filter = filter.clone();
        let cutoff = self.cutoff();
        self.read(move |file| find(file, &filter, cutoff)).await
    }

    async fn change_labels(
        &self,
        device: &DeviceId,
        changes: &LabelChanges,
        author: &Author,
    ) -> Result<Labelled, StoreError> {
        let (device, changes, author) = (device.clone(), changes.clone(), author.clone());
        let cutoff = self.cutoff();
        self.write(move |file| label(file, &device, &changes, &author, cutoff))
            .await
    }

    async fn retire(
        &self,
        device: &DeviceId,
        now: ReceivedAt,
    ) -> Result<Option<Retired>, StoreError> {
        let device = device.clone();
        let cutoff = self.cutoff();
        self.write(move |file| retire(file, &device, now, cutoff))
            .await
    }

    async fn fleet_size(&self) -> Result<FleetSize, StoreError> {
        let size = |row: &Row| {
            Ok(FleetSize {
                devices: number(row, 0)?,
                online: number(row, 1)?,
                retired: number(row, 2)?,
            })
        };
        let values = vec![time_cell(self.cutoff())];
        let found = self
            .read(move |file| file.query(SIZE, values, size))
            .await?;
        Ok(found.into_iter().next().unwrap_or_default())
    }

    async fn reinstate(&self, device: &DeviceId) -> Result<Option<Device>, StoreError> {
        let device = device.clone();
        let cutoff = self.cutoff();
        self.write(move |file| {
            for sql in [REINSTATE, ASK_AFTER] {
                file.execute(sql, vec![text_cell(device.as_str())])?;
            }
            one(file, &device, cutoff)
        })
        .await
    }
}

pub(super) fn devices(
    file: &mut File,
    after: Option<&DeviceId>,
    limit: usize,
    cutoff: ReceivedAt,
) -> Result<Vec<Device>, StoreError> {
    let after = text_cell(after.map_or("", DeviceId::as_str));
    let values = vec![after, limited(limit), time_cell(cutoff)];
    file.query(DEVICES, values, read)
}

pub(super) fn is_retired(file: &mut File, device: &DeviceId) -> Result<bool, StoreError> {
    let values = vec![text_cell(device.as_str())];
    let found = file.query(IS_RETIRED, values, |_| Ok(()))?;
    Ok(!found.is_empty())
}

/// The devices that a filter lets through.
pub(super) fn find(
    file: &mut File,
    filter: &DeviceFilter,
    cutoff: ReceivedAt,
) -> Result<Vec<Device>, StoreError> {
    let truth = |is: Option<bool>| maybe(is.map(|is| Cell::Integer(i64::from(is))));
    let mut values = vec![
        text_cell(filter.after.as_ref().map_or("", DeviceId::as_str)),
        text_cell(&filter.prefix),
        Cell::Text(filter.prefix_end()),
        truth(filter.online),
        truth(filter.retired),
        limited(filter.limit),
        time_cell(cutoff),
    ];
    let Some((key, value)) = filter.labels.first_key_value() else {
        return file.query(FILTERED, values, read);
    };
    values.extend([
        text_cell(key.as_str()),
        text_cell(value.as_str()),
        Cell::Text(to_json(&filter.labels)),
    ]);
    file.query(LABELLED, values, read)
}

fn label(
    file: &mut File,
    id: &DeviceId,
    changes: &LabelChanges,
    author: &Author,
    cutoff: ReceivedAt,
) -> Result<Labelled, StoreError> {
    let known = match one(file, id, cutoff)? {
        Some(known) => known.labels,
        None => Default::default(),
    };
    let wanted = changed(known.clone(), changes);
    if wanted.len() > LABELS_MAX {
        return Ok(Labelled::TooMany);
    }
    let device = || text_cell(id.as_str());
    file.execute(MEET, vec![device(), time_cell(author.at)])?;
    for (key, value) in changes {
        let key = text_cell(key.as_str());
        match value {
            Some(value) => file.execute(LABEL, vec![device(), key, text_cell(value.as_str())])?,
            None => file.execute(UNLABEL, vec![device(), key])?,
        };
    }
    let (left, joined) = (group_of(&known), group_of(&wanted));
    let is_configured = left != joined && groups::change_over(file, id, left, joined, author)?;
    let device = one(file, id, cutoff)?.ok_or_else(|| bad("device", "it is gone"))?;
    Ok(Labelled::Done {
        device,
        is_configured,
    })
}

fn retire(
    file: &mut File,
    id: &DeviceId,
    now: ReceivedAt,
    cutoff: ReceivedAt,
) -> Result<Option<Retired>, StoreError> {
    let device = || text_cell(id.as_str());
    file.execute(RETIRE, vec![device(), time_cell(now)])?;
    let Some(found) = one(file, id, cutoff)? else {
        return Ok(None);
    };
    let values = vec![
        device(),
        time_cell(now),
        Cell::Integer(STEP_ENDED),
        Cell::Integer(STEP_SENT),
    ];
    let cancelled = file.execute(CANCEL_ALL, values)? as u64;
    file.execute(TELL_NOTHING, vec![device()])?;
    Ok(Some(Retired {
        device: found,
        cancelled,
    }))
}

fn one(file: &mut File, id: &DeviceId, cutoff: ReceivedAt) -> Result<Option<Device>, StoreError> {
    let values = vec![text_cell(id.as_str()), time_cell(cutoff)];
    let found = file.query(ONE, values, read)?;
    Ok(found.into_iter().next())
}

/// From the eight columns of a device.
fn read(row: &Row) -> Result<Device, StoreError> {
    let epoch = maybe_int(row, 5)?;
    let labels = from_json(row.get_str(6).ok());
    Ok(Device {
        device: values::device(row, 0)?,
        first_seen: values::received(row, 1)?,
        last_seen: values::received(row, 2)?,
        online: int(row, 3)? != 0,
        agent_version: row.get_str(4).ok().map(str::to_owned),
        epoch: epoch.map(|_| values::epoch(row, 5)).transpose()?,
        labels: labels.map_err(|error| bad("labels", error))?,
        retired_at: maybe_int(row, 7)?.map(ReceivedAt::from_micros),
    })
}
