//! What a client is sent: receipts, messages within its window, a goodbye.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use certs::Role;
use schema::limits::PAYLOAD_BYTES_MAX;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;

use super::Front;
use crate::router::Message;
use crate::shard::Delivery;
use crate::wire::Qos;

/// How long a client may take to hear why it is refused.
const FAREWELL: Duration = Duration::from_secs(1);

impl<S> Front<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    pub(super) fn receipt(&mut self, id: u16) {
        self.receipts_due = self.receipts_due.saturating_sub(1);
        self.write.puback(id, &mut self.out);
    }

    pub(super) fn deliver(&mut self, delivery: Delivery) {
        let Delivery { message, retained } = delivery;
        let Some(qos) = self.quality(&message, retained) else {
            return;
        };
        let bytes = self
            .write
            .publish_bytes(&message.topic, &message.payload, Some(1));
        if bytes > self.packet_bytes_max {
            self.core.meters.too_large.inc();
            return;
        }
        let id = match qos {
            Qos::Zero => None,
            // Nothing is prepared while the window is full.
            Qos::One | Qos::Two => self.window.take(),
        };
        self.meters.publishes_out.inc();
        self.meters.bytes_out.inc_by(message.payload.len() as u64);
        self.write.publish(
            &message.topic,
            &message.payload,
            id,
            retained,
            &mut self.out,
        );
    }

    /// The quality that a message is sent with. A device's mailbox takes all that is meant for
    /// the device, so its filters are looked at here; a service's lanes have done it.
    fn quality(&self, message: &Message, retained: bool) -> Option<Qos> {
        if self.peer.identity.role != Role::Device || retained {
            return Some(message.qos);
        }
        let topic = std::str::from_utf8(&message.topic).ok()?;
        let (device, channel) = crate::filter::split_topic(topic)?;
        self.subscriptions
            .iter()
            .filter(|subscription| subscription.filter.matches(device, channel))
            .map(|subscription| subscription.qos.min(message.qos))
            .max()
    }
}

/// Writes what is prepared and returns how many bytes; without any it flushes, and returns zero. Safe to
/// drop while it waits.
pub(super) async fn send<S>(writer: &mut WriteHalf<S>, out: &mut BytesMut) -> io::Result<usize>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    if out.is_empty() {
        writer.flush().await?;
        return Ok(0);
    }
    match writer.write_buf(out).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        bytes => Ok(bytes),
    }
}

/// Says goodbye, and waits a moment for the client to read it: closing at once, with bytes
/// of the client's unread, would take the goodbye back.
pub(super) async fn farewell<S>(reader: &mut ReadHalf<S>, writer: &mut WriteHalf<S>, goodbye: &[u8])
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let say = async {
        writer.write_all(goodbye).await?;
        writer.shutdown().await?;
        let mut unread = [0; 512];
        let mut most = PAYLOAD_BYTES_MAX;
        while most > 0 {
            match reader.read(&mut unread).await? {
                0 => break,
                bytes => most = most.saturating_sub(bytes),
            }
        }
        Ok::<(), io::Error>(())
    };
    // Whether it was heard changes nothing here.
    let _ = timeout(FAREWELL, say).await;
}
