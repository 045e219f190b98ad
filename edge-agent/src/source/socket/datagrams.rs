//! Readings over UDP: each datagram is a line or several, and nothing is answered. What is refused is counted, and
//! logged once per change.
//!
//! ```text
//! receive ─► lines ─► submit ──┐ (at most APPENDS_MAX wait for their commit; beyond that the system drops datagrams)
//!                              └─► commit ─► counted
//! ```

use std::io;

use schema::SensorName;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::WARN_EVERY;
use crate::buffer::Append;
use crate::ingest::APPEND_READINGS_MAX;
use crate::repeat::Repeats;
use crate::source::format::{LINE_SAMPLES_MAX, LineRules};
use crate::source::{Outlet, Submission};

/// The longest datagram of UDP.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Most appends that wait for their commit.
const APPENDS_MAX: usize = 8;

/// Samples after which an append is handed over, so that one datagram more still fits.
const APPEND_SAMPLES: usize = APPEND_READINGS_MAX - LINE_SAMPLES_MAX;

/// Takes datagrams in until `stop`.
pub(super) async fn receive(
    socket: &UdpSocket,
    rules: &LineRules,
    outlet: &Outlet,
    stop: &CancellationToken,
) -> io::Result<()> {
    let (submissions, waiting) = mpsc::channel(APPENDS_MAX);
    let reading = async {
        tokio::select! {
            outcome = read(socket, rules, outlet, submissions) => outcome,
            () = stop.cancelled() => Ok(()),
        }
    };
    // The channel ends with the reading; what was handed over is still counted.
    let (outcome, ()) = tokio::join!(reading, count(outlet, waiting));
    outcome
}

/// Datagrams that share an append at most.
const DATAGRAMS_TOGETHER: usize = 16;

async fn read(
    socket: &UdpSocket,
    rules: &LineRules,
    outlet: &Outlet,
    submissions: mpsc::Sender<Submission>,
) -> io::Result<()> {
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    let mut warnings = Repeats::new(WARN_EVERY);
    loop {
        let mut append = Append::default();
        let mut bytes = socket.recv(&mut datagram).await?;
        // Bad lines bring no samples, and cost all the same: others have their turn between.
        tokio::task::yield_now().await;
        for together in 1.. {
            let lines = datagram.get(..bytes).unwrap_or_default();
            take(lines, rules, outlet, &mut append, &mut warnings);
            if append.samples.len() >= APPEND_SAMPLES || together == DATAGRAMS_TOGETHER {
                break;
            }
            // What has come meanwhile shares the append.
            match socket.try_recv(&mut datagram) {
                Ok(next) => bytes = next,
                Err(_) => break,
            }
        }
        while !append.samples.is_empty() {
            let at = append.samples.len().min(APPEND_READINGS_MAX);
            let rest = append.samples.split_off(at);
            let whole = std::mem::replace(&mut append.samples, rest);
            let part = Append {
                samples: whole,
                ..Append::default()
            };
            let submission = outlet.submit(part).await;
            if submissions.send(submission).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Reads the lines of one datagram.
fn take(
    datagram: &[u8],
    rules: &LineRules,
    outlet: &Outlet,
    append: &mut Append,
    warnings: &mut Repeats,
) {
    let now_micros = outlet.now_micros();
    let lines = datagram.split(|byte| *byte == b'\n');
    // The end of the last line is no empty one.
    for line in lines.filter(|line| !line.is_empty()) {
        let declare = |sensor: &SensorName, said| outlet.declare_more(sensor, said);
        let samples = &mut append.samples;
        if let Err(error) = rules.read_declaring(line, now_micros, samples, declare) {
            outlet.refused(error.label(), 1);
            if warnings.is_due(error.label()) {
                warn!(%error, "a line of a datagram is refused");
            }
        }
    }
}

async fn count(outlet: &Outlet, mut waiting: mpsc::Receiver<Submission>) {
    while let Some(submission) = waiting.recv().await {
        outlet.note(submission.done().await);
    }
}
