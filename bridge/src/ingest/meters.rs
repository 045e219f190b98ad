//! What the loop counts: rows that enter, what became of them, and how long their writes took.

use std::time::Duration;

use daemon::metrics::{Label, registered};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use store::RowCounts;

/// The metrics of the loop.
#[derive(Debug)]
pub(crate) struct IngestMeters {
    pub(super) rows_entered: Counter,
    rows_left: Counter,
    rows: Family<Label, Counter>,
    write_seconds: Histogram,
    write_rows: Histogram,
    pub(super) refused_writes: Counter,
    pub(super) let_go: Counter,
}

impl IngestMeters {
    /// Registers them.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        // A millisecond to half a minute; a row to 16,384.
        let write_seconds = Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let write_rows = Histogram::new(exponential_buckets(1.0, 2.0, 15));
        registry.register_with_unit(
            "tideline_bridge_write",
            "Time from the start of a write to its commit",
            Unit::Seconds,
            write_seconds.clone(),
        );
        registry.register(
            "tideline_bridge_write_rows",
            "Rows in one write",
            write_rows.clone(),
        );
        Self {
            rows_entered: registered(
                registry,
                "tideline_bridge_pipeline_rows_entered",
                "Rows taken into the pipeline",
            ),
            rows_left: registered(
                registry,
                "tideline_bridge_pipeline_rows_left",
                "Rows that left the pipeline by a commit",
            ),
            rows: registered(
                registry,
                "tideline_bridge_rows",
                "Readings by what became of them in the database",
            ),
            write_seconds,
            write_rows,
            refused_writes: registered(
                registry,
                "tideline_bridge_refused_writes",
                "Writes of readings that the database refused for a reason of its own; parts of them are tried apart",
            ),
            let_go: registered(
                registry,
                "tideline_bridge_let_go_deliveries",
                "Deliveries with refused readings that were not acknowledged; devices send them again",
            ),
        }
    }

    /// A write of so many rows was committed.
    pub(super) fn committed(&self, rows: usize, took: Duration, outcomes: RowCounts) {
        self.rows_left.inc_by(rows as u64);
        self.write_seconds.observe(took.as_secs_f64());
        self.write_rows.observe(rows as f64);
        let RowCounts {
            inserted,
            replaced,
            older,
            same,
            known,
            refused,
        } = outcomes;
        for (outcome, count) in [
            ("Inserted", inserted),
            ("Replaced", replaced),
            ("Older", older),
            ("Same", same),
            ("Known", known),
            ("Refused", refused),
        ] {
            let label = [("outcome", outcome)];
            self.rows.get_or_create(&label).inc_by(count);
        }
    }
}
