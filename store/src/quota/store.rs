//! The tables of what is kept aside: `kept_aside` counts it, `dropped_losers` says what of the ledger has no copy any more.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use schema::digest::Digester;
use schema::time::ReceivedAt;
use schema::{DeviceId, Epoch, Row as Reading, SeqRange};

use super::{Amount, Aside, Count, Rooms};
use crate::StoreError;
use crate::ledger::contest::Lost;
use crate::sql::{Access, Broken, Cell, Database, Port, Row, all, cells, first, int8, unreadable};

/// Raises the counters of some devices, and shows what they are then.
const ADD: &str = "INSERT INTO kept_aside (kind, device_id, kept, kept_bytes, dropped, dropped_bytes) \
     SELECT $2::TEXT, f.value ->> 0, (f.value ->> 1)::INT8, (f.value ->> 2)::INT8, 0, 0 \
     FROM jsonb_array_elements($1::TEXT::JSONB) AS f (value) WHERE true \
     ON CONFLICT (kind, device_id) DO UPDATE SET kept = kept_aside.kept + excluded.kept, \
         kept_bytes = kept_aside.kept_bytes + excluded.kept_bytes \
     RETURNING device_id, kept, kept_bytes, counted_at";

/// What is kept of a device after all, and what is not.
const SETTLE: &str = "UPDATE kept_aside SET kept = $3, kept_bytes = $4, dropped = dropped + $5, \
         dropped_bytes = dropped_bytes + $6, dropped_at = coalesce($7::TIMESTAMPTZ, dropped_at), \
         counted_at = coalesce($8::TIMESTAMPTZ, counted_at) \
     WHERE kind = $1 AND device_id = $2";

/// The bytes of a letter: what is kept of its payload, its texts, and as much again as its numbers take.
const COUNT_LETTERS: &str = "SELECT count(*), coalesce(sum(least(payload_bytes, 65536) \
         + octet_length(topic) + octet_length(reason) + 64), 0)::INT8 \
     FROM dead_letters WHERE device_id = $1";

const COUNT_LOSERS: &str = "SELECT count(*), \
         coalesce(sum(octet_length(sensor) + coalesce(octet_length(value_text), 0) + 128), 0)::INT8 \
     FROM conflicts WHERE device_id = $1";

/// What letters and losers take beside their texts, in [`COUNT_LETTERS`] and [`COUNT_LOSERS`].
const LETTER_BYTES: u64 = 64;
const LOSER_BYTES: u64 = 128;

const OF_DEVICE: &str = "SELECT kept, kept_bytes, dropped, dropped_bytes FROM kept_aside \
     WHERE kind = $1 AND device_id = $2";

const OF_ALL: &str = "SELECT coalesce(sum(kept), 0)::INT8, coalesce(sum(kept_bytes), 0)::INT8, \
         coalesce(sum(dropped), 0)::INT8, coalesce(sum(dropped_bytes), 0)::INT8 \
     FROM kept_aside WHERE kind = $1";

/// Devices of which something is kept, by kind and name.
const COUNTED: &str = "SELECT kind, device_id FROM kept_aside \
     WHERE (kind, device_id) > ($1, $2) AND kept > 0 ORDER BY kind, device_id LIMIT $3";

/// A place that nobody else has a counter of meanwhile.
const LOCK: &str = "UPDATE kept_aside SET kept = kept_aside.kept \
     WHERE kind = $1 AND device_id = $2";

const NOTE_DROPPED: &str = "INSERT INTO dropped_losers (device_id, epoch, losers, digest_low, \
         digest_high, first_seq, last_seq) \
     SELECT f.value ->> 0, (f.value ->> 1)::INT8, (f.value ->> 2)::INT8, (f.value ->> 3)::INT8, \
         (f.value ->> 4)::INT8, (f.value ->> 5)::INT8, (f.value ->> 6)::INT8 \
     FROM jsonb_array_elements($1::TEXT::JSONB) AS f (value) WHERE true \
     ON CONFLICT (device_id, epoch) DO UPDATE SET \
         losers = dropped_losers.losers + excluded.losers, \
         digest_low = dropped_losers.digest_low + excluded.digest_low, \
         digest_high = dropped_losers.digest_high + excluded.digest_high, \
         first_seq = least(dropped_losers.first_seq, excluded.first_seq), \
         last_seq = greatest(dropped_losers.last_seq, excluded.last_seq)";

const DROPPED: &str = "SELECT device_id, epoch, losers, digest_low, digest_high, first_seq, \
     last_seq FROM dropped_losers WHERE device_id = ANY($1)";

/// Devices that one call of [`QuotaStore::recount`] counts, and rows after which it ends.
const RECOUNT_DEVICES: usize = 64;
const RECOUNT_ROWS: u64 = 50_000;

/// What is kept aside, and what was not kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeptAside {
    /// What is kept, as it was last counted.
    pub kept: Amount,
    /// What was not kept, ever.
    pub not_kept: Amount,
}

/// Versions of one epoch that lost and were not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DroppedLosers {
    /// Their epoch.
    pub epoch: Epoch,
    /// How many.
    pub losers: u64,
    /// Wrapping sum of their digests.
    pub digest: u64,
    /// Between which sequences they are.
    pub within: SeqRange,
}

/// The part of a store that knows what is kept aside.
#[async_trait]
pub trait QuotaStore: Send + Sync {
    /// What is kept aside of a device, or of all, and what was not kept.
    async fn kept_aside(
        &self,
        aside: Aside,
        device: Option<&DeviceId>,
    ) -> Result<KeptAside, StoreError>;

    /// What of a device's ledger has no copy any more, by epoch.
    async fn dropped_losers(&self, device: &DeviceId) -> Result<Vec<DroppedLosers>, StoreError>;

    /// Counts anew what is kept of some devices, behind a place that the last call returned or the empty text. Returns
    /// where to go on; the empty text at the end.
    async fn recount(&self, behind: &str, now: ReceivedAt) -> Result<String, StoreError>;
}

#[async_trait]
impl<D: Database> QuotaStore for D {
    async fn kept_aside(
        &self,
        aside: Aside,
        device: Option<&DeviceId>,
    ) -> Result<KeptAside, StoreError> {
        let (sql, cells) = match device {
            Some(device) => (OF_DEVICE, cells![aside.as_str(), device]),
            None => (OF_ALL, cells![aside.as_str()]),
        };
        let found = self.first(Access::Read, sql, cells, kept_aside);
        Ok(found.await?.unwrap_or_default())
    }

    async fn dropped_losers(&self, device: &DeviceId) -> Result<Vec<DroppedLosers>, StoreError> {
        let cells = cells![vec![device.to_string()]];
        let found = self.rows(Access::Read, DROPPED, cells, dropped).await?;
        Ok(found.into_iter().map(|(_, dropped)| dropped).collect())
    }

    async fn recount(&self, behind: &str, now: ReceivedAt) -> Result<String, StoreError> {
        // No kind and no device has a space.
        let (kind, device) = behind.split_once(' ').unwrap_or_default();
        let cells = cells![kind, device, RECOUNT_DEVICES];
        let found = self.rows(Access::Read, COUNTED, cells, |row| {
            Ok((row.text(0)?, row.text(1)?))
        });
        let found = found.await?;
        let is_last = found.len() < RECOUNT_DEVICES;
        let (mut counted, mut place) = (0, String::new());
        for (kind, device) in found {
            place = format!("{kind} {device}");
            if let Some(aside) = Aside::ALL.into_iter().find(|of| of.as_str() == kind) {
                let input = (aside, device, now);
                let recounted = self.run(Access::Transaction, input, |port, input| {
                    let (aside, device, now) = input;
                    Box::pin(recount_one(port, *aside, device, *now))
                });
                counted += recounted.await?.rows;
            }
            if counted >= RECOUNT_ROWS {
                return Ok(place);
            }
        }
        Ok(match is_last {
            true => String::new(),
            false => place,
        })
    }
}

/// The sum over all devices, where it is wanted.
pub(crate) async fn sum_up(port: &mut dyn Port, rooms: &Rooms, aside: Aside) -> Result<(), Broken> {
    let cells = cells![aside.as_str()];
    let found = first(port, OF_ALL, cells, kept_aside).await?;
    rooms.summed(aside, found.unwrap_or_default().kept);
    Ok(())
}

/// Locks the counter of a device, which whoever keeps something of it locks before what it keeps: to be called before
/// anything that is counted is changed.
pub(crate) async fn hold(port: &mut dyn Port, aside: Aside, device: &str) -> Result<(), Broken> {
    port.execute(LOCK, cells![aside.as_str(), device]).await?;
    Ok(())
}

/// Counts what is kept of a device whose counter is held.
pub(crate) async fn recount_held(
    port: &mut dyn Port,
    aside: Aside,
    device: &str,
    now: ReceivedAt,
) -> Result<Amount, Broken> {
    let kept = count(port, aside, device).await?;
    settle(port, aside, device, kept, Amount::default(), now, true).await?;
    Ok(kept)
}

/// Counts what is kept of a device. Whoever keeps something of it meanwhile waits.
async fn recount_one(
    port: &mut dyn Port,
    aside: Aside,
    device: &str,
    now: ReceivedAt,
) -> Result<Amount, Broken> {
    hold(port, aside, device).await?;
    recount_held(port, aside, device, now).await
}

pub(super) async fn add(
    port: &mut dyn Port,
    aside: Aside,
    added: &BTreeMap<&str, Amount>,
) -> Result<BTreeMap<String, Count>, Broken> {
    let named = added
        .iter()
        .map(|(device, amount)| serde_json::json!([device, int8(amount.rows), int8(amount.bytes)]));
    let named = serde_json::Value::from_iter(named).to_string();
    let read = |row: &dyn Row| {
        let after = Amount {
            rows: row.number(1)?,
            bytes: row.number(2)?,
        };
        Ok((row.text(0)?, after, row.maybe_time(3)?))
    };
    let found = all(port, ADD, cells![named, aside.as_str()], read).await?;
    let count = |(device, after, counted_at): (String, Amount, _)| {
        let added = added.get(device.as_str()).copied().unwrap_or_default();
        let before = after.minus(added);
        (device, Count { before, counted_at })
    };
    Ok(found.into_iter().map(count).collect())
}

/// How much is there.
pub(super) async fn count(
    port: &mut dyn Port,
    aside: Aside,
    device: &str,
) -> Result<Amount, Broken> {
    let sql = match aside {
        Aside::DeadLetters => COUNT_LETTERS,
        Aside::Conflicts => COUNT_LOSERS,
    };
    let found = first(port, sql, cells![device], |row| {
        Ok(Amount {
            rows: row.number(0)?,
            bytes: row.number(1)?,
        })
    });
    Ok(found.await?.unwrap_or_default())
}

pub(super) async fn settle(
    port: &mut dyn Port,
    aside: Aside,
    device: &str,
    kept: Amount,
    dropped: Amount,
    now: ReceivedAt,
    is_counted: bool,
) -> Result<(), Broken> {
    let dropped_at = Cell::Time((dropped.rows > 0).then_some(now));
    let counted_at = Cell::Time(is_counted.then_some(now));
    let mut cells = cells![aside.as_str(), device, kept.rows, kept.bytes];
    cells.extend(cells![dropped.rows, dropped.bytes]);
    cells.extend([dropped_at, counted_at]);
    port.execute(SETTLE, cells).await?;
    Ok(())
}

/// Notes versions that lost and are not kept, for whoever verifies their ranges.
pub(crate) async fn note_dropped(port: &mut dyn Port, lost: &[&Lost<'_>]) -> Result<(), Broken> {
    if lost.is_empty() {
        return Ok(());
    }
    let mut digester = Digester::default();
    let mut by_epoch: BTreeMap<(&str, Epoch), Dropping> = BTreeMap::new();
    for lost in lost {
        let digest = lost.digest(&mut digester);
        let of = by_epoch.entry((lost.device, lost.version.epoch));
        of.or_default().add(lost.version.seq, digest);
    }
    let noted = by_epoch.iter().map(|((device, epoch), of)| {
        let Dropping {
            losers,
            digest_low,
            digest_high,
            first,
            last,
        } = of;
        let [first, last] = [first, last].map(|seq| int8(*seq));
        serde_json::json!([
            device,
            epoch.get(),
            losers,
            digest_low,
            digest_high,
            first,
            last
        ])
    });
    let noted = serde_json::Value::from_iter(noted).to_string();
    port.execute(NOTE_DROPPED, cells![noted]).await?;
    Ok(())
}

/// Between which sequences versions are that lost and were not kept, of some devices.
pub(crate) async fn dropped_of(
    port: &mut dyn Port,
    devices: Vec<String>,
) -> Result<HashMap<(DeviceId, Epoch), SeqRange>, Broken> {
    let found = all(port, DROPPED, cells![devices], dropped).await?;
    let of = |(device, of): (DeviceId, DroppedLosers)| ((device, of.epoch), of.within);
    Ok(found.into_iter().map(of).collect())
}

#[derive(Debug, Default)]
struct Dropping {
    losers: u64,
    digest_low: u64,
    digest_high: u64,
    first: u64,
    last: u64,
}

impl Dropping {
    fn add(&mut self, seq: u64, digest: u64) {
        self.first = match self.losers {
            0 => seq,
            _ => self.first.min(seq),
        };
        self.last = self.last.max(seq);
        self.losers += 1;
        self.digest_low += digest & 0xffff_ffff;
        self.digest_high += digest >> 32;
    }
}

/// The device of an epoch, and what was dropped of it.
fn dropped(row: &dyn Row) -> Result<(DeviceId, DroppedLosers), StoreError> {
    let (low, high): (u64, u64) = (row.number(3)?, row.number(4)?);
    let within = SeqRange::new(row.number(5)?, row.number(6)?);
    let dropped = DroppedLosers {
        epoch: row.epoch(1)?,
        losers: row.number(2)?,
        digest: low.wrapping_add(high.wrapping_shl(32)),
        within: within.ok_or_else(|| unreadable("sequence range", "it ends before it begins"))?,
    };
    Ok((row.device(0)?, dropped))
}

fn kept_aside(row: &dyn Row) -> Result<KeptAside, StoreError> {
    Ok(KeptAside {
        kept: Amount {
            rows: row.number(0)?,
            bytes: row.number(1)?,
        },
        not_kept: Amount {
            rows: row.number(2)?,
            bytes: row.number(3)?,
        },
    })
}

impl Lost<'_> {
    /// What a copy of it takes, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let text = match self.value {
            schema::Value::Text(text) => text.len(),
            schema::Value::F64(_) | schema::Value::I64(_) | schema::Value::Bool(_) => 0,
        };
        LOSER_BYTES + (self.sensor.len() + text) as u64
    }

    fn digest(&self, digester: &mut Digester) -> u64 {
        let row = Reading {
            sensor: 0,
            observed_at: self.observed_at,
            hlc: self.version.hlc,
            seq: self.version.seq,
            quality: self.quality,
            value: self.value.clone(),
        };
        digester.row(self.version.epoch, self.sensor, &row)
    }
}

impl crate::DeadLetter {
    /// What a copy of it takes, in bytes.
    pub(crate) fn kept_bytes(&self) -> u64 {
        let payload = self.payload.len().min(crate::DEAD_LETTER_BYTES_MAX);
        LETTER_BYTES + (payload + self.topic.len() + self.reason.len()) as u64
    }
}
