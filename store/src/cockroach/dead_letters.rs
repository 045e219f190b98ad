//! Dead letters: looked at, and thrown away.

use async_trait::async_trait;
use schema::time::ReceivedAt;
use sqlx::postgres::PgRow;
use sqlx::{Executor as _, Row as _};

use super::super::dead_letters::{DeadLetterStore, LetterId, LetterQuery, head_bytes};
use super::super::{DeadLetter, KeptLetter, StoreError};
use super::arguments::Micros;
use super::dialect::Purpose;
use super::query::{TO_MAX, limited};
use super::{Cockroach, rows};

const PAGE: &str = concat!(
    "SELECT device_id, topic, substr(payload, 1, ",
    head_bytes!(),
    "), payload_bytes, reason, times, received_at, payload_digest FROM dead_letters \
     WHERE (device_id = $1::TEXT OR $1::TEXT IS NULL) \
         AND (received_at, device_id, payload_digest) < ($2, $3::TEXT, $4::INT8) \
     ORDER BY received_at DESC, device_id DESC, payload_digest DESC LIMIT $5"
);

const ONE: &str = "SELECT device_id, topic, payload, payload_bytes, reason, times, received_at, \
     payload_digest FROM dead_letters WHERE device_id = $1 AND payload_digest = $2";

const DISCARD: &str = "DELETE FROM dead_letters WHERE device_id = $1 AND payload_digest = $2";

#[async_trait]
impl DeadLetterStore for Cockroach {
    async fn letters(&self, query: &LetterQuery) -> Result<Vec<KeptLetter>, StoreError> {
        let device = query.device.as_ref().map(|device| device.as_str());
        let (at, of, digest) = match &query.after {
            Some(after) => (
                after.received_at,
                after.id.device_key(),
                after.id.digest.cast_signed(),
            ),
            None => (ReceivedAt::from_micros(i64::MAX), "", 0),
        };
        let at = Micros(at.micros().min(TO_MAX.micros()));
        run!(self, &mut self.budget(), Purpose::ReadStale, |connection| {
            let select = sqlx::query(PAGE)
                .bind(device)
                .bind(at)
                .bind(of)
                .bind(digest)
                .bind(limited(query.limit));
            let found = connection.fetch_all(select).await?;
            found.iter().map(letter).collect()
        })
    }

    async fn letter(&self, id: &LetterId) -> Result<Option<KeptLetter>, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let select = sqlx::query(ONE).bind(id.device_key());
            let select = select.bind(id.digest.cast_signed());
            let found = connection.fetch_optional(select).await?;
            found.as_ref().map(letter).transpose()
        })
    }

    async fn discard_letter(&self, id: &LetterId) -> Result<bool, StoreError> {
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let delete = sqlx::query(DISCARD).bind(id.device_key());
            let done = connection
                .execute(delete.bind(id.digest.cast_signed()))
                .await?;
            Ok(done.rows_affected() > 0)
        })
    }
}

fn letter(row: &PgRow) -> Result<KeptLetter, sqlx::Error> {
    let device = match row.try_get::<&str, _>(0)? {
        "" => None,
        _ => Some(rows::device(row, 0)?),
    };
    Ok(KeptLetter {
        id: LetterId::from_key(device.clone(), rows::int(row, 7)?),
        letter: DeadLetter {
            device,
            topic: row.try_get(1)?,
            payload: row.try_get::<Vec<u8>, _>(2)?.into(),
            reason: row.try_get(4)?,
            received_at: rows::received(row, 6)?,
        },
        payload_bytes: rows::number(row, 3)?,
        times: rows::number(row, 5)?,
    })
}
