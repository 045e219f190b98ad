//! What systemd is told of a process (`sd_notify`): that it works, what it does, that it stops, that it lives.
//!
//! Messages go to the datagram socket that `NOTIFY_SOCKET` names, by a path or, after `@`, by an abstract name.
//! Where the variable is not set nothing is sent, and nothing costs anything. That a message is lost is no error:
//! systemd then acts as if the process had said nothing.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::interval;
use tracing::debug;

use crate::failure::Failure;
use crate::lifecycle::Lifecycle;

/// Names the socket.
const SOCKET: &str = "NOTIFY_SOCKET";

/// How often at least the process must say that it lives, in microseconds, and which process is meant.
const WATCHDOG: &str = "WATCHDOG_USEC";
const WATCHDOG_PROCESS: &str = "WATCHDOG_PID";

/// The most that `STATUS=` carries: systemd shows one line.
const STATUS_BYTES_MAX: usize = 400;

/// Signs of life in the time in which one is due: one that comes late is followed by another in time.
const SIGNS: u32 = 3;

/// The process works: what was to be started is.
pub fn ready(status: &str) {
    send(&format!("READY=1\nSTATUS={}", line(status)));
}

/// What the process does now, in one line.
pub fn status(text: &str) {
    send(&format!("STATUS={}", line(text)));
}

/// The process stops; sent when a stop begins.
pub fn stopping() {
    send("STOPPING=1");
}

/// The process reads its settings again; [`ready`] says when that is done. For units of `Type=notify-reload`, too, which
/// want the moment.
pub fn reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = now.tv_sec.saturating_mul(1_000_000) + now.tv_nsec / 1_000;
    send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
}

/// The process starts, or stops, and may take so long from now on.
pub fn extend(by: Duration) {
    send(&format!("EXTEND_TIMEOUT_USEC={}", by.as_micros()));
}

/// The process lives.
pub fn alive() {
    send("WATCHDOG=1");
}

/// Whether somebody listens.
#[must_use]
pub fn is_wanted() -> bool {
    std::env::var_os(SOCKET).is_some_and(|socket| !socket.is_empty())
}

/// In which time a sign of life is due; `None` where no one waits for it.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    watchdog_of(
        variable(WATCHDOG).as_deref(),
        variable(WATCHDOG_PROCESS).as_deref(),
        std::process::id(),
    )
    .filter(|_| is_wanted())
}

/// The pause between signs of life of which one is due in `due`.
#[must_use]
pub fn pause(due: Duration) -> Duration {
    (due / SIGNS).max(Duration::from_millis(1))
}

/// Says that the process lives, as long as its runtime gives a task its turn: for processes of which no part can
/// stand still alone. Does nothing where no sign of life is due.
pub fn keep_alive(lifecycle: &Lifecycle) {
    let Some(due) = watchdog() else { return };
    let whole = lifecycle.clone();
    lifecycle.spawn("watchdog", async move {
        let mut signs = interval(pause(due));
        loop {
            tokio::select! {
                _ = signs.tick() => alive(),
                () = whole.stopping() => return Ok::<(), Failure>(()),
            }
        }
    });
}

fn watchdog_of(micros: Option<&str>, process: Option<&str>, own: u32) -> Option<Duration> {
    let is_meant = match process {
        Some(text) => text.trim().parse() == Ok(own),
        None => true,
    };
    let micros: u64 = micros?.trim().parse().ok()?;
    (is_meant && micros > 0).then(|| Duration::from_micros(micros))
}

/// A text as one line that is not too long.
fn line(text: &str) -> String {
    let mut line: String = text
        .chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect();
    let mut end = line.len().min(STATUS_BYTES_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line
}

fn send(message: &str) {
    let Some(socket) = std::env::var_os(SOCKET).filter(|socket| !socket.is_empty()) else {
        return;
    };
    if let Err(error) = send_to(&socket, message) {
        debug!(%error, "systemd was not told");
    }
}

fn send_to(socket: &OsString, message: &str) -> io::Result<()> {
    let address = address(socket)?;
    let sender = UnixDatagram::unbound()?;
    // Whoever does not read must not hold up the process.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(message.as_bytes(), &address).map(drop)
}

fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(socket),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "NOTIFY_SOCKET is neither a path nor an abstract name",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UnixDatagram) -> String {
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut bytes = [0; 1024];
        let count = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    #[test]
    fn a_message_reaches_a_socket_by_path_and_by_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        send_to(&path.into_os_string(), "READY=1").unwrap();
        assert_eq!(receive(&by_path), "READY=1");

        let name = format!("tideline-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        send_to(&format!("@{name}").into(), "STOPPING=1").unwrap();
        assert_eq!(receive(&by_name), "STOPPING=1");
    }

    #[test]
    fn what_is_no_socket_is_an_error_and_nobody_waits() {
        for nowhere in [
            "vsock:2:1",
            "relative",
            "/nowhere/notify",
            "@nobody-listens",
        ] {
            assert!(send_to(&nowhere.into(), "READY=1").is_err(), "{nowhere}");
        }
        // Nobody reads: the socket's queue fills, and then messages are dropped.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let _unread = UnixDatagram::bind(&path).unwrap();
        let socket = path.into_os_string();
        let full = (0..100_000).find_map(|_| send_to(&socket, "WATCHDOG=1").err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_sign_of_life_is_due_where_this_process_is_meant() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(watchdog_of(Some("1000000"), None, 7), second);
        assert_eq!(watchdog_of(Some("1000000"), Some("7"), 7), second);
        for (micros, process) in [
            (Some("1000000"), Some("8")),
            (Some("1000000"), Some("")),
            (Some("0"), None),
            (Some("-1"), None),
            (Some("soon"), None),
            (None, Some("7")),
        ] {
            assert_eq!(watchdog_of(micros, process, 7), None, "{micros:?}");
        }
        assert!(pause(Duration::from_secs(3)) == Duration::from_secs(1));
        assert!(pause(Duration::ZERO) > Duration::ZERO);
    }

    #[test]
    fn a_status_is_one_line_of_bounded_length() {
        assert_eq!(line("a\nREADY=1"), "a READY=1");
        assert_eq!(line(&"x".repeat(STATUS_BYTES_MAX)).len(), STATUS_BYTES_MAX);
        assert_eq!(line(&"é".repeat(STATUS_BYTES_MAX)).len(), STATUS_BYTES_MAX);
        assert_eq!(
            line(&"x".repeat(STATUS_BYTES_MAX + 1)).len(),
            STATUS_BYTES_MAX
        );
    }
}
