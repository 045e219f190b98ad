//! What came of a run.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use daemon::say;
use schema::Balance;
use serde::Serialize;

use super::tally::Tally;

/// The figures of a run, as `--json` prints them.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    devices: usize,
    /// Devices that were connected at least once.
    connected: u64,
    connections_lost: u64,
    accepted: u64,
    committed: u64,
    pending: u64,
    quarantined: u64,
    evicted: u64,
    discarded: u64,
    batches: u64,
    retransmissions: u64,
    /// Payloads of telemetry, retransmissions included.
    payload_bytes: u64,
    payload_bytes_per_reading: Option<f64>,
    /// From the first connection to the last scan.
    scan_seconds: f64,
    /// With the drain.
    seconds: f64,
    committed_per_second: f64,
    /// From the publish of a batch to the acknowledgement of its last row.
    ack_latency_seconds: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Report {
    pub(super) fn new(devices: usize, tally: &Tally, scans: Duration, all: Duration) -> Self {
        let Balance {
            accepted,
            committed,
            pending,
            quarantined,
            evicted,
            discarded,
        } = tally.balance();
        let bytes = tally.bytes.load(Relaxed);
        let seconds = all.as_secs_f64();
        let latency = |quantile| tally.latency(quantile);
        Self {
            devices,
            connected: tally.connected_ever.load(Relaxed),
            connections_lost: tally.connections_lost.load(Relaxed),
            accepted,
            committed,
            pending,
            quarantined,
            evicted,
            discarded,
            batches: tally.batches.load(Relaxed),
            retransmissions: tally.retransmissions.load(Relaxed),
            payload_bytes: bytes,
            payload_bytes_per_reading: (committed > 0).then(|| bytes as f64 / committed as f64),
            scan_seconds: scans.as_secs_f64(),
            seconds,
            committed_per_second: committed as f64 / seconds.max(f64::MIN_POSITIVE),
            ack_latency_seconds: latency(0.5).zip(latency(1.0)).map(|(p50, max)| Latency {
                p50,
                p90: latency(0.9).unwrap_or(max),
                p99: latency(0.99).unwrap_or(max),
                max,
            }),
            last_error: tally.last_error(),
        }
    }

    /// Whether every device got through, and everything it accepted is in the database.
    pub(super) fn is_good(&self) -> bool {
        self.connected == self.devices as u64
            && self.accepted == self.committed
            && self.accepted > 0
    }

    pub(super) fn print(&self, json: bool) {
        if json {
            say!("{}", serde_json::to_string(self).expect("a report is JSON"));
            return;
        }
        say!(
            "devices      {} of {} connected, {} connections lost",
            self.connected,
            self.devices,
            self.connections_lost
        );
        say!(
            "readings     {} accepted = {} committed + {} pending + {} quarantined + {} evicted + {} discarded",
            self.accepted,
            self.committed,
            self.pending,
            self.quarantined,
            self.evicted,
            self.discarded
        );
        say!(
            "rate         {:.0} committed a second, over {:.1} s of scans and {:.1} s of drain",
            self.committed_per_second,
            self.scan_seconds,
            self.seconds - self.scan_seconds
        );
        say!(
            "batches      {}, of them {} sent again, {:.2} bytes of payload a reading",
            self.batches,
            self.retransmissions,
            self.payload_bytes_per_reading.unwrap_or_default()
        );
        if let Some(Latency { p50, p90, p99, max }) = &self.ack_latency_seconds {
            let [p50, p90, p99, max] = [p50, p90, p99, max].map(|seconds| 1000.0 * seconds);
            say!(
                "acknowledged {p50:.0} ms (median), {p90:.0} ms (p90), {p99:.0} ms (p99), {max:.0} ms (worst)"
            );
        }
        if let Some(error) = &self.last_error {
            say!("last error   {error}");
        }
        if !self.is_good() {
            say!("Not everything arrived.");
        }
    }
}
