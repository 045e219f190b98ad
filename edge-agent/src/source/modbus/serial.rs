//! A serial line as a stream of bytes: raw, with the speed and the parity that its devices have, and for this process
//! alone.
//!
//! Made of rustix, which the agent has anyway: the usual crate for it, serialport below tokio-serial, is MPL-2.0, and
//! whoever builds Tideline into a device is to owe nobody source code. A converter that must be told when
//! to send (RTS of RS-485) is set up in the system, not here.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::termios::{
    ControlModes, OptionalActions, QueueSelector, isatty, tcflush, tcgetattr, tcsetattr,
};
use serde::Deserialize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The bit that makes the ones of a byte even or odd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Parity {
    /// There is none.
    None,
    /// As the specification of the protocol has it.
    #[default]
    Even,
    /// The other way round.
    Odd,
}

/// How bytes travel on a line; each has eight bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode8 {
    /// Bits in a second.
    pub baud: u32,
    /// The bit after a byte's.
    pub parity: Parity,
    /// 1 or 2.
    pub stop_bits: u8,
}

/// An open line.
#[derive(Debug)]
pub(super) struct Line {
    file: AsyncFd<OwnedFd>,
}

impl Line {
    /// Opens it, and forgets what was received before.
    ///
    /// # Errors
    /// When there is no such device, another process has it, or it cannot be set so.
    pub(super) fn open(path: &Path, mode: Mode8) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = open(path, flags, Mode::empty())?;
        if !isatty(&file) {
            return Err(io::Error::other("it is no serial line"));
        }
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => {
                io::Error::other("another program has it, or another source of this agent")
            }
            other => other.into(),
        })?;
        let mut termios = tcgetattr(&file)?;
        termios.make_raw();
        termios.set_speed(mode.baud)?;
        let modes = &mut termios.control_modes;
        // What stands on the line counts, whatever a modem says.
        modes.insert(ControlModes::CREAD | ControlModes::CLOCAL);
        modes.remove(ControlModes::CRTSCTS);
        modes.set(ControlModes::PARENB, mode.parity != Parity::None);
        modes.set(ControlModes::PARODD, mode.parity == Parity::Odd);
        modes.set(ControlModes::CSTOPB, mode.stop_bits == 2);
        tcsetattr(&file, OptionalActions::Now, &termios)?;
        tcflush(&file, QueueSelector::IOFlush)?;
        #[expect(
            deprecated,
            reason = "unsound with types that lie about their descriptor, and its successor is unsafe; this one owns it"
        )]
        let file = AsyncFd::new(file)?;
        Ok(Self { file })
    }
}

impl AsyncRead for Line {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.file.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled();
            match ready.try_io(|file| Ok(rustix::io::read(file, &mut *room)?)) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_not_yet) => {}
            }
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.file.poll_write_ready(context))?;
            if let Ok(written) = ready.try_io(|file| Ok(rustix::io::write(file, bytes)?)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The system sends by itself.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODE: Mode8 = Mode8 {
        baud: 19_200,
        parity: Parity::Even,
        stop_bits: 1,
    };

    #[test]
    fn what_is_no_line_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "kept").unwrap();
        let error = Line::open(&file, MODE).unwrap_err();
        assert_eq!(error.to_string(), "it is no serial line");
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
        let missing = Line::open(&folder.path().join("missing"), MODE).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
