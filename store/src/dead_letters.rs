//! Dead letters as they are looked at, one by one, and thrown away. Keeping them is
//! [`ReportStore::keep_dead_letters`](super::ReportStore::keep_dead_letters).

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use bytes::Bytes;
use schema::DeviceId;
use schema::time::ReceivedAt;

use super::StoreError;
use super::quota::{Aside, hold, recount_held};
use super::sql::{Access, Broken, Database, Port, Row, cells, page_limit};

/// Looks at dead letters, and throws them away.
#[async_trait]
pub trait DeadLetterStore: Send + Sync {
    /// Letters, the latest first, with the first bytes of their payloads.
    async fn letters(&self, query: &LetterQuery) -> Result<Vec<KeptLetter>, StoreError>;

    /// One letter, whole as it was kept.
    async fn letter(&self, id: &LetterId) -> Result<Option<KeptLetter>, StoreError>;

    /// Throws one away. Returns whether it was there.
    async fn discard_letter(&self, id: &LetterId) -> Result<bool, StoreError>;
}

/// Of each payload a list shows the first 256 bytes; one letter alone is shown whole.
macro_rules! page {
    ($rest:literal) => {
        concat!(
            "SELECT device_id, topic, substr(payload, 1, 256), payload_bytes, reason, times, \
             received_at, payload_digest FROM dead_letters ",
            $rest
        )
    };
}

pub(crate) const OF_ALL: &str = page!(
    "WHERE (received_at, device_id, payload_digest) < ($1, $2::TEXT, $3::INT8) \
     ORDER BY received_at DESC, device_id DESC, payload_digest DESC LIMIT $4"
);

pub(crate) const OF_DEVICE: &str = page!(
    "WHERE device_id = $1 AND (received_at, payload_digest) < ($2, $3::INT8) \
     ORDER BY received_at DESC, payload_digest DESC LIMIT $4"
);

const ONE: &str = "SELECT device_id, topic, payload, payload_bytes, reason, times, received_at, \
     payload_digest FROM dead_letters WHERE device_id = $1 AND payload_digest = $2";

const DISCARD: &str = "DELETE FROM dead_letters WHERE device_id = $1 AND payload_digest = $2";

#[async_trait]
impl<D: Database> DeadLetterStore for D {
    async fn letters(&self, query: &LetterQuery) -> Result<Vec<KeptLetter>, StoreError> {
        let (at, of, digest) = match &query.after {
            Some(LetterCursor { received_at, id }) => {
                (*received_at, id.device_key(), id.digest.cast_signed())
            }
            None => (ReceivedAt::from_micros(i64::MAX), "", 0),
        };
        let most = page_limit(query.limit);
        let (sql, cells) = match &query.device {
            Some(device) => (OF_DEVICE, cells![device, at, digest, most]),
            None => (OF_ALL, cells![at, of, digest, most]),
        };
        self.list(Access::ReadStale, sql, cells, letter).await
    }

    async fn letter(&self, id: &LetterId) -> Result<Option<KeptLetter>, StoreError> {
        let cells = cells![id.device_key(), id.digest.cast_signed()];
        self.first(Access::Read, ONE, cells, letter).await
    }

    async fn discard_letter(&self, id: &LetterId) -> Result<bool, StoreError> {
        let input = (
            id.device_key().to_owned(),
            id.digest.cast_signed(),
            self.now(),
        );
        self.run(Access::Transaction, input, |port, (device, digest, now)| {
            Box::pin(discard(port, device, *digest, *now))
        })
        .await
    }
}

/// What is thrown away makes room.
async fn discard(
    port: &mut dyn Port,
    device: &str,
    digest: i64,
    now: ReceivedAt,
) -> Result<bool, Broken> {
    hold(port, Aside::DeadLetters, device).await?;
    let is_gone = port.execute(DISCARD, cells![device, digest]).await? > 0;
    if is_gone {
        recount_held(port, Aside::DeadLetters, device, now).await?;
    }
    Ok(is_gone)
}

fn letter(row: &dyn Row) -> Result<KeptLetter, StoreError> {
    let device = row.maybe_device(0)?;
    Ok(KeptLetter {
        id: LetterId::from_key(device.clone(), row.int(7)?),
        letter: DeadLetter {
            device,
            topic: row.text(1)?,
            payload: row.bytes(2)?.into(),
            reason: row.text(4)?,
            received_at: row.time(6)?,
        },
        payload_bytes: row.number(3)?,
        times: row.number(5)?,
    })
}

/// Most bytes of one dead letter's payload that are kept.
pub const DEAD_LETTER_BYTES_MAX: usize = 64 * 1024;

/// A payload that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The device that sent it, where the topic names one.
    pub device: Option<DeviceId>,
    /// Where it arrived; anything but NUL.
    pub topic: String,
    /// Its bytes; [`DEAD_LETTER_BYTES_MAX`] of them are kept.
    pub payload: Bytes,
    /// Why it is here.
    pub reason: String,
    /// When the bridge took it.
    pub received_at: ReceivedAt,
}

/// A dead letter as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptLetter {
    /// Its name.
    pub id: LetterId,
    /// The letter; its payload is cut to [`DEAD_LETTER_BYTES_MAX`], its time is the last one's.
    pub letter: DeadLetter,
    /// The payload's whole length.
    pub payload_bytes: u64,
    /// How often it arrived.
    pub times: u64,
}

/// Names a dead letter: `{digest in 16 hexadecimal digits}.{device, or nothing}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LetterId {
    /// The digest of its whole payload.
    pub digest: u64,
    /// The device that sent it, where the topic names one.
    pub device: Option<DeviceId>,
}

/// Which letters to return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterQuery {
    /// Of one device, or of all.
    pub device: Option<DeviceId>,
    /// Behind this one.
    pub after: Option<LetterCursor>,
    /// At most so many, capped at [`QUERY_ROWS_MAX`](super::QUERY_ROWS_MAX).
    pub limit: usize,
}

/// A letter's place among all: `{received at, in microseconds}.{id}`. One that arrives again moves
/// to the front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterCursor {
    /// When it last arrived.
    pub received_at: ReceivedAt,
    /// Which one.
    pub id: LetterId,
}

/// A text that names no dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no name of a dead letter: 16 hexadecimal digits, a dot, and its device if known")]
pub struct NoLetter;

impl LetterId {
    /// The device as it stands in the key.
    pub(crate) fn device_key(&self) -> &str {
        self.device.as_ref().map_or("", DeviceId::as_str)
    }

    /// The device of a key.
    pub(crate) fn from_key(device: Option<DeviceId>, digest: i64) -> Self {
        Self {
            digest: digest.cast_unsigned(),
            device,
        }
    }
}

impl FromStr for LetterId {
    type Err = NoLetter;

    fn from_str(text: &str) -> Result<Self, NoLetter> {
        let (digest, device) = text.split_once('.').ok_or(NoLetter)?;
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if digest.len() != 16 || !digest.bytes().all(is_hex) {
            return Err(NoLetter);
        }
        Ok(Self {
            digest: u64::from_str_radix(digest, 16).map_err(|_| NoLetter)?,
            device: match device {
                "" => None,
                device => Some(device.parse().map_err(|_| NoLetter)?),
            },
        })
    }
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}", self.digest, self.device_key())
    }
}

impl FromStr for LetterCursor {
    type Err = NoLetter;

    fn from_str(text: &str) -> Result<Self, NoLetter> {
        let (micros, id) = text.split_once('.').ok_or(NoLetter)?;
        Ok(Self {
            received_at: ReceivedAt::from_micros(micros.parse().map_err(|_| NoLetter)?),
            id: id.parse()?,
        })
    }
}

impl fmt::Display for LetterCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.received_at.micros(), self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_names_no_letter_is_refused() {
        for bad in [
            "",
            ".",
            "0123456789abcdef",
            "0123456789abcde.d",
            "0123456789abcdeff.d",
            "+123456789abcdef.d",
            "0123456789ABCDEF.d",
            "0123456789abcdef.a/b",
        ] {
            assert_eq!(bad.parse::<LetterId>(), Err(NoLetter), "{bad}");
        }
        assert!("x.0123456789abcdef.d".parse::<LetterCursor>().is_err());
    }

    proptest! {
        #[test]
        fn names_and_cursors_come_back(digest in any::<u64>(), micros in any::<i64>(), device in "[A-Za-z0-9._-]{0,64}") {
            let id = LetterId { digest, device: device.parse().ok() };
            prop_assert_eq!(id.to_string().parse(), Ok(id.clone()));
            let cursor = LetterCursor { received_at: ReceivedAt::from_micros(micros), id };
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }

        #[test]
        fn no_text_panics(text in ".{0,90}") {
            let _ = (text.parse::<LetterId>(), text.parse::<LetterCursor>());
        }
    }
}
