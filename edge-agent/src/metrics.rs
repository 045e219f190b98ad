//! The agent's metric families. Each part is handed its own; nothing is global.
//!
//! The five counts of the delivery ledger come from one look at the buffer, so that every scrape
//! shows promise P8: accepted = committed + pending + quarantined + evicted + discarded.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use schema::message::{ClockReport, ClockState};

use crate::buffer::{Progress, Reason};

/// What the session's driver counts.
#[derive(Debug, Clone)]
pub(crate) struct SessionMeters {
    pub(crate) batches: Counter,
    pub(crate) retransmitted: Counter,
    pub(crate) rows: Counter,
    pub(crate) bytes: Counter,
    pub(crate) refused: Counter,
    pub(crate) storage_failures: Counter,
    pub(crate) ack_latency: Histogram,
}

/// What the intake counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct IngestMeters {
    refused: Family<ReasonLabel, Counter>,
    producers_closed: Family<ReasonLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

impl SessionMeters {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let meters = Self {
            batches: Counter::default(),
            retransmitted: Counter::default(),
            rows: Counter::default(),
            bytes: Counter::default(),
            refused: Counter::default(),
            storage_failures: Counter::default(),
            // 5 ms, a commit next door, to 82 s, above the longest time-out.
            ack_latency: Histogram::new((0..15).map(|n| 0.005 * f64::from(1u32 << n))),
        };
        registry.register(
            "tideline_agent_batches_sent",
            "Batches handed to the link",
            meters.batches.clone(),
        );
        registry.register(
            "tideline_agent_batches_retransmitted",
            "Batches sent of which a row was sent before",
            meters.retransmitted.clone(),
        );
        registry.register(
            "tideline_agent_batches_refused",
            "Batches whose payload the bridge could not read",
            meters.refused.clone(),
        );
        registry.register(
            "tideline_agent_batch_rows_sent",
            "Rows in the batches handed to the link",
            meters.rows.clone(),
        );
        registry.register_with_unit(
            "tideline_agent_batches_sent",
            "Payload of the batches handed to the link",
            Unit::Bytes,
            meters.bytes.clone(),
        );
        registry.register(
            "tideline_agent_storage_failures",
            "Reads and deletions that the buffer failed to do and that were tried again",
            meters.storage_failures.clone(),
        );
        registry.register_with_unit(
            "tideline_agent_ack_latency",
            "From handing a batch to the link to the bridge's acknowledgement of all of it",
            Unit::Seconds,
            meters.ack_latency.clone(),
        );
        meters
    }
}

impl IngestMeters {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let meters = Self::default();
        registry.register(
            "tideline_agent_readings_refused",
            "Readings that were not accepted, by reason: they are in no ledger",
            meters.refused.clone(),
        );
        registry.register(
            "tideline_agent_producers_closed",
            "Connections of producers that the agent ended, by reason",
            meters.producers_closed.clone(),
        );
        meters
    }

    pub(crate) fn producer_closed(&self, reason: &'static str) {
        let closed = self.producers_closed.get_or_create(&ReasonLabel { reason });
        closed.inc();
    }

    pub(crate) fn refused(&self, reason: &'static str, readings: u64) {
        self.refused
            .get_or_create(&ReasonLabel { reason })
            .inc_by(readings);
    }
}

/// Reads the ledger's counts when it is scraped.
pub(crate) struct LedgerCollector<F>(pub(crate) F);

impl<F: Fn() -> Progress + Send + Sync + 'static> Collector for LedgerCollector<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Progress {
            balance,
            bytes,
            quarantined_bytes,
            evicted,
            is_filling,
            ..
        } = (self.0)();
        let counters = [
            (
                "tideline_agent_readings_accepted",
                "Readings taken over from sources, on disk at least once",
                balance.accepted,
            ),
            (
                "tideline_agent_readings_committed",
                "Readings that the database has committed, by its own word",
                balance.committed,
            ),
        ];
        for (name, help, count) in counters {
            let metric = ConstCounter::new(count);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        let gauges = [
            (
                "tideline_agent_readings_pending",
                "Readings on disk that no acknowledgement has settled",
                balance.pending,
            ),
            // Gauges: an acknowledgement that comes after the eviction moves a reading from
            // evicted to committed, and so with the other two.
            (
                "tideline_agent_readings_evicted",
                "Readings dropped from a full buffer by its policy",
                balance.evicted,
            ),
            (
                "tideline_agent_readings_quarantined",
                "Readings on disk that were refused for now, with a reason",
                balance.quarantined,
            ),
            (
                "tideline_agent_readings_discarded",
                "Readings given up by a person or by the quarantine's budget",
                balance.discarded,
            ),
        ];
        for (name, help, count) in gauges {
            let metric = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        let mut by_reason = encoder.encode_descriptor(
            "tideline_agent_readings_evicted_by_reason",
            "Readings that a policy dropped, by reason; some may turn out to be committed",
            None,
            MetricType::Counter,
        )?;
        for (reason, count) in Reason::ALL.into_iter().zip(evicted) {
            let reason = reason.as_str();
            let label = ReasonLabel { reason };
            ConstCounter::new(count).encode(by_reason.encode_family(&label)?)?;
        }
        let filling = ConstGauge::new(i64::from(is_filling));
        filling.encode(encoder.encode_descriptor(
            "tideline_agent_buffer_filling",
            "Whether pending readings take more of the buffer than warn_at",
            None,
            filling.metric_type(),
        )?)?;
        let gauges = [
            (
                "tideline_agent_buffer_pending",
                "Bytes of pending readings, as the buffer's limit counts them",
                bytes,
            ),
            (
                "tideline_agent_buffer_quarantined",
                "Bytes of readings in quarantine, as its budget counts them",
                quarantined_bytes,
            ),
        ];
        for (name, help, bytes) in gauges {
            let metric = ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX));
            let unit = Some(&Unit::Bytes);
            metric.encode(encoder.encode_descriptor(name, help, unit, metric.metric_type())?)?;
        }
        Ok(())
    }
}

/// Exports the state of the device's clock when it is scraped.
pub(crate) struct ClockCollector<F>(pub(crate) F);

impl<F: Fn() -> ClockReport + Send + Sync + 'static> Collector for ClockCollector<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let ClockReport { state, offset_ms } = (self.0)();
        let is_known = state != ClockState::Unverified;
        let metric = ConstGauge::new(i64::from(is_known));
        let (name, help) = (
            "tideline_agent_clock_verified",
            "Whether the device's clock was compared with the database's, or is synchronised",
        );
        metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        let Some(offset_ms) = offset_ms else {
            return Ok(());
        };
        let metric = ConstGauge::new(offset_ms as f64 / 1000.0);
        let (name, help) = (
            "tideline_agent_clock_offset",
            "The device's clock less the database's",
        );
        let unit = Some(&Unit::Seconds);
        metric.encode(encoder.encode_descriptor(name, help, unit, metric.metric_type())?)
    }
}

impl<F> fmt::Debug for ClockCollector<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockCollector")
    }
}

impl<F> fmt::Debug for LedgerCollector<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LedgerCollector")
    }
}
