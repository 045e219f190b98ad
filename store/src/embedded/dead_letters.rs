//! Dead letters in the file: looked at, and thrown away.

use async_trait::async_trait;
use libsql::{Row, Value as Cell};

use super::super::dead_letters::{DeadLetterStore, LetterId, LetterQuery, head_bytes};
use super::super::{DeadLetter, KeptLetter, StoreError};
use super::Embedded;
use super::query::limited;
use super::values::{self, maybe, text_cell, time_cell};

const PAGE: &str = concat!(
    "SELECT device_id, topic, substr(payload, 1, ",
    head_bytes!(),
    "), payload_bytes, reason, times, received_at, payload_digest FROM dead_letters \
     WHERE (device_id = ?1 OR ?1 IS NULL) \
         AND (received_at, device_id, payload_digest) < (?2, ?3, ?4) \
     ORDER BY received_at DESC, device_id DESC, payload_digest DESC LIMIT ?5"
);

const ONE: &str = "SELECT device_id, topic, payload, payload_bytes, reason, times, received_at, \
     payload_digest FROM dead_letters WHERE device_id = ?1 AND payload_digest = ?2";

const DISCARD: &str = "DELETE FROM dead_letters WHERE device_id = ?1 AND payload_digest = ?2";

#[async_trait]
impl DeadLetterStore for Embedded {
    async fn letters(&self, query: &LetterQuery) -> Result<Vec<KeptLetter>, StoreError> {
        let device = query.device.as_ref();
        let device = maybe(device.map(|device| text_cell(device.as_str())));
        let mut values = vec![device];
        match &query.after {
            Some(after) => {
                values.push(time_cell(after.received_at));
                values.extend(key(&after.id));
            }
            None => values.extend([Cell::Integer(i64::MAX), text_cell(""), Cell::Integer(0)]),
        }
        values.push(limited(query.limit));
        self.read(move |file| file.query_sound(PAGE, values, read_letter))
            .await
    }

    async fn letter(&self, id: &LetterId) -> Result<Option<KeptLetter>, StoreError> {
        let values = key(id).to_vec();
        let found = self
            .read(move |file| file.query(ONE, values, read_letter))
            .await?;
        Ok(found.into_iter().next())
    }

    async fn discard_letter(&self, id: &LetterId) -> Result<bool, StoreError> {
        let values = key(id).to_vec();
        self.write(move |file| Ok(file.execute(DISCARD, values)? > 0))
            .await
    }
}

fn key(id: &LetterId) -> [Cell; 2] {
    let digest = Cell::Integer(id.digest.cast_signed());
    [text_cell(id.device_key()), digest]
}

fn read_letter(row: &Row) -> Result<KeptLetter, StoreError> {
    let device = match values::text(row, 0)? {
        "" => None,
        _ => Some(values::device(row, 0)?),
    };
    Ok(KeptLetter {
        id: LetterId::from_key(device.clone(), values::int(row, 7)?),
        letter: DeadLetter {
            device,
            topic: values::text(row, 1)?.to_owned(),
            payload: values::bytes(row, 2)?.into(),
            reason: values::text(row, 4)?.to_owned(),
            received_at: values::received(row, 6)?,
        },
        payload_bytes: values::number(row, 3)?,
        times: values::number(row, 5)?,
    })
}
