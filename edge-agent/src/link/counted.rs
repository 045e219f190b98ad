//! Bytes of the link as they pass the socket: MQTT within TLS, handshakes, and what is said to a proxy. The headers of TCP and IP
//! and what the kernel sends twice are not among them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that passed since the start.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    pub(crate) sent: Counter,
    pub(crate) received: Counter,
}

impl Traffic {
    /// Bytes sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Bytes received.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// Both together, as carriers bill.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.sent().saturating_add(self.received())
    }
}

/// A socket whose bytes are counted.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    socket: S,
    traffic: Traffic,
}

impl<S> Counted<S> {
    pub(crate) const fn new(socket: S, traffic: Traffic) -> Self {
        Self { socket, traffic }
    }

    fn count_sent(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.traffic.sent.inc_by(*bytes as u64);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, buffer);
        let bytes = buffer.filled().len().saturating_sub(before);
        self.traffic.received.inc_by(bytes as u64);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.count_sent(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bytes);
        self.count_sent(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_passes_is_counted_in_both_directions() {
        let (near, mut far) = tokio::io::duplex(64);
        let traffic = Traffic::default();
        let mut near = Counted::new(near, traffic.clone());
        near.write_all(b"12345").await.unwrap();
        far.write_all(b"abc").await.unwrap();
        let mut read = [0; 2];
        near.read_exact(&mut read).await.unwrap();
        assert_eq!((traffic.sent(), traffic.received()), (5, 2));
        near.read_exact(&mut read[..1]).await.unwrap();
        assert_eq!(traffic.total(), 8);
    }
}
