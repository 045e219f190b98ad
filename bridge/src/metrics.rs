//! The bridge's metric families. Labels are small enums, never a device.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use schema::{Balance, Channel, DiscardedBy};
use store::{FleetLedger, RowCounts, Store};

/// The connection to the broker.
#[derive(Debug, Clone, Default)]
pub struct IntakeMeters {
    pub(crate) connected: Gauge,
    pub(crate) connections: Counter,
    messages: Family<ChannelLabel, Counter>,
    bytes: Counter,
    pub(crate) dropped: Counter,
}

/// What became of what arrived.
#[derive(Debug, Clone)]
pub struct IngestMeters {
    rows: Family<OutcomeLabel, Counter>,
    pub(crate) dead_letters: Counter,
    pub(crate) acks: Counter,
    pub(crate) refusals: Counter,
    pub(crate) overflows: Counter,
    pub(crate) refused_writes: Counter,
    pub(crate) let_go: Counter,
    pub(crate) store_errors: Family<ClassLabel, Counter>,
    pub(crate) rows_entered: Counter,
    pub(crate) rows_left: Counter,
    pub(crate) write_seconds: Histogram,
    pub(crate) write_rows: Histogram,
    pub(crate) resyncs: Counter,
    pub(crate) ranges_merged: Counter,
    pub(crate) rows_expired: Counter,
    pub(crate) commands_sent: Counter,
    pub(crate) commands_expired: Counter,
    pub(crate) command_words: Counter,
    pub(crate) configs_sent: Counter,
    pub(crate) config_overrides: Counter,
    pub(crate) direct: Counter,
    pub(crate) direct_busy: Counter,
}

/// What became of the fleet's readings, by the ledger.
#[derive(Debug, Clone, Default)]
pub struct LedgerMeters {
    readings: Family<FateLabel, Gauge>,
    discarded: Family<ByLabel, Gauge>,
}

/// What became of readings: the names of the ledger's identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FateLabel {
    fate: &'static str,
}

/// Who discarded readings.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByLabel {
    by: &'static str,
}

/// Who asks the API.
#[derive(Debug, Clone, Default)]
pub struct ApiMeters {
    refused: Family<ReasonLabel, Counter>,
    pub(crate) audit_lost: Counter,
    pub(crate) alerts_firing: Gauge,
}

/// What the store itself counts.
#[derive(Debug)]
pub(crate) struct StoreCollector(pub(crate) Arc<dyn Store>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChannelLabel {
    channel: MessageKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelValue)]
enum MessageKind {
    Telemetry,
    Event,
    Status,
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Outcome {
    Inserted,
    Replaced,
    Older,
    Same,
    Known,
    Refused,
}

/// The class of an error.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ClassLabel {
    pub(crate) class: &'static str,
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let activity = self.0.activity();
        for (name, help, count) in [
            ("commits", "Commits that wrote readings", activity.commits),
            (
                "replans",
                "Writes planned again because another bridge had moved a ledger on",
                activity.replans,
            ),
            (
                "replica_reads",
                "Queries that a replica answered",
                activity.replica_reads,
            ),
        ] {
            let name = format!("tideline_bridge_store_{name}");
            let counter = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            ConstCounter::new(count).encode(counter)?;
        }
        let mut retries = encoder.encode_descriptor(
            "tideline_bridge_store_retries",
            "Attempts repeated, by the class of what was in the way",
            None,
            MetricType::Counter,
        )?;
        for (class, count) in [
            ("conflict", activity.retries_conflict),
            ("network", activity.retries_network),
            ("overload", activity.retries_overload),
        ] {
            let class = ClassLabel { class };
            let counter = retries.encode_family(&class)?;
            ConstCounter::new(count).encode(counter)?;
        }
        Ok(())
    }
}

impl LedgerMeters {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let meters = Self::default();
        registry.register(
            "tideline_bridge_ledger_readings",
            "Readings of the fleet by what became of them, as of this bridge's last look at the ledger",
            meters.readings.clone(),
        );
        registry.register(
            "tideline_bridge_ledger_discarded",
            "Discarded readings of the fleet by who gave them up, as of this bridge's last look",
            meters.discarded.clone(),
        );
        meters
    }

    pub(crate) fn looked(&self, fleet: &FleetLedger) {
        let Balance {
            accepted,
            committed,
            pending,
            quarantined,
            evicted,
            discarded,
        } = fleet.balance;
        for (fate, readings) in [
            ("accepted", accepted),
            ("committed", committed),
            ("pending", pending),
            ("quarantined", quarantined),
            ("evicted", evicted),
            ("discarded", discarded),
            ("superseded", fleet.superseded),
            ("expired", fleet.expired),
            ("unaccounted", fleet.unaccounted),
        ] {
            set(&self.readings, &FateLabel { fate }, readings);
        }
        let by = [
            Some(DiscardedBy::Person),
            Some(DiscardedBy::QuarantineBudget),
            None,
        ];
        for by in by {
            let readings = fleet.discarded.get(&by).copied().unwrap_or(0);
            let by = store::discarder(by);
            set(&self.discarded, &ByLabel { by }, readings);
        }
    }
}

fn set<L: Clone + Eq + std::hash::Hash>(of: &Family<L, Gauge>, label: &L, readings: u64) {
    of.get_or_create(label)
        .set(i64::try_from(readings).unwrap_or(i64::MAX));
}

impl IntakeMeters {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let meters = Self::default();
        let mut add = |name: &str, help: &str, metric: Counter| {
            registry.register(format!("tideline_bridge_{name}"), help, metric);
        };
        add(
            "connections",
            "Connections made to the broker",
            meters.connections.clone(),
        );
        add(
            "received_payload_bytes",
            "Bytes of payload received",
            meters.bytes.clone(),
        );
        add(
            "messages_dropped",
            "Messages dropped because the queue was full; devices send them again",
            meters.dropped.clone(),
        );
        registry.register(
            "tideline_bridge_messages",
            "Messages received, by channel",
            meters.messages.clone(),
        );
        registry.register(
            "tideline_bridge_connected",
            "Whether the broker is connected",
            meters.connected.clone(),
        );
        meters
    }

    /// Counts a message with a payload of so many bytes; of no channel where its topic is none of ours.
    pub(crate) fn received(&self, channel: Option<Channel>, bytes: usize) {
        let channel = match channel {
            Some(Channel::Telemetry) => MessageKind::Telemetry,
            Some(Channel::Event) => MessageKind::Event,
            Some(Channel::Status) => MessageKind::Status,
            Some(Channel::Ack | Channel::Command | Channel::Config) | None => MessageKind::Unknown,
        };
        self.messages.get_or_create(&ChannelLabel { channel }).inc();
        self.bytes.inc_by(bytes as u64);
    }
}

impl ApiMeters {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let meters = Self::default();
        registry.register(
            "tideline_bridge_api_refused",
            "Requests without a token that counts",
            meters.refused.clone(),
        );
        registry.register(
            "tideline_bridge_audit_lost",
            "Audit entries that could not be kept",
            meters.audit_lost.clone(),
        );
        registry.register(
            "tideline_bridge_alerts_firing",
            "Alerts that nobody has acknowledged",
            meters.alerts_firing.clone(),
        );
        meters
    }

    /// A request without a token that counts; the reason is one of few.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }
}

impl IngestMeters {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let meters = Self {
            rows: Family::default(),
            dead_letters: Counter::default(),
            acks: Counter::default(),
            refusals: Counter::default(),
            overflows: Counter::default(),
            refused_writes: Counter::default(),
            let_go: Counter::default(),
            store_errors: Family::default(),
            rows_entered: Counter::default(),
            rows_left: Counter::default(),
            // A millisecond to half a minute; a row to 16,384.
            write_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            write_rows: Histogram::new(exponential_buckets(1.0, 2.0, 15)),
            resyncs: Counter::default(),
            ranges_merged: Counter::default(),
            rows_expired: Counter::default(),
            commands_sent: Counter::default(),
            commands_expired: Counter::default(),
            command_words: Counter::default(),
            configs_sent: Counter::default(),
            config_overrides: Counter::default(),
            direct: Counter::default(),
            direct_busy: Counter::default(),
        };
        for (name, help, counter) in [
            (
                "dead_letters",
                "Payloads kept aside because they could not be read",
                &meters.dead_letters,
            ),
            ("acks", "Acknowledgements published", &meters.acks),
            (
                "refusals",
                "Refusals of whole payloads published",
                &meters.refusals,
            ),
            (
                "side_overflows",
                "Births, reports and other words of devices that had no room; they are said again",
                &meters.overflows,
            ),
            (
                "refused_writes",
                "Writes of readings that the database refused for a reason of its own; parts of them are tried apart",
                &meters.refused_writes,
            ),
            (
                "let_go_deliveries",
                "Deliveries with refused readings that were not acknowledged; devices send them again",
                &meters.let_go,
            ),
            (
                "pipeline_rows_entered",
                "Rows taken into the pipeline",
                &meters.rows_entered,
            ),
            (
                "pipeline_rows_left",
                "Rows that left the pipeline by a commit",
                &meters.rows_left,
            ),
            (
                "resync_requests",
                "Ranges that devices were asked for again",
                &meters.resyncs,
            ),
            (
                "ledger_ranges_merged",
                "Ledger ranges merged into their neighbours",
                &meters.ranges_merged,
            ),
            (
                "rows_expired",
                "Readings, conflicts and dead letters dropped because they were too old",
                &meters.rows_expired,
            ),
            (
                "commands_sent",
                "Commands sent to devices, each time that they were",
                &meters.commands_sent,
            ),
            (
                "commands_expired",
                "Commands given up because their device said nothing in time",
                &meters.commands_expired,
            ),
            (
                "command_words",
                "Words of devices on their commands",
                &meters.command_words,
            ),
            (
                "configs_sent",
                "Configurations sent to devices, each time that they were",
                &meters.configs_sent,
            ),
            (
                "config_overrides",
                "Settings that devices have changed themselves, taken over as desired",
                &meters.config_overrides,
            ),
            (
                "direct_deliveries",
                "Batches committed for requests that waited for it",
                &meters.direct,
            ),
            (
                "direct_busy",
                "Requests with readings turned away, because there was no room or no commit in time",
                &meters.direct_busy,
            ),
        ] {
            registry.register(format!("tideline_bridge_{name}"), help, counter.clone());
        }
        registry.register(
            "tideline_bridge_rows",
            "Readings by what became of them in the database",
            meters.rows.clone(),
        );
        registry.register(
            "tideline_bridge_store_errors",
            "Errors of the database, by class; each was tried again",
            meters.store_errors.clone(),
        );
        registry.register_with_unit(
            "tideline_bridge_write",
            "Time from the start of a write to its commit",
            Unit::Seconds,
            meters.write_seconds.clone(),
        );
        registry.register(
            "tideline_bridge_write_rows",
            "Rows in one write",
            meters.write_rows.clone(),
        );
        meters
    }

    pub(crate) fn committed(&self, rows: RowCounts) {
        let RowCounts {
            inserted,
            replaced,
            older,
            same,
            known,
            refused,
        } = rows;
        for (outcome, count) in [
            (Outcome::Inserted, inserted),
            (Outcome::Replaced, replaced),
            (Outcome::Older, older),
            (Outcome::Same, same),
            (Outcome::Known, known),
            (Outcome::Refused, refused),
        ] {
            self.rows
                .get_or_create(&OutcomeLabel { outcome })
                .inc_by(count);
        }
    }
}
