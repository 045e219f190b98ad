//! What the store counts itself, collected at each scrape.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use store::Store;
use store::quota::Aside;

/// A store whose activity is collected.
#[derive(Debug)]
pub(crate) struct StoreCollector(pub(crate) Arc<dyn Store>);

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
            let label = [("class", class)];
            ConstCounter::new(count).encode(retries.encode_family(&label)?)?;
        }
        let mut not_kept = encoder.encode_descriptor(
            "tideline_bridge_store_not_kept",
            "What was to be kept aside and was not, by whose quota is used up",
            None,
            MetricType::Counter,
        )?;
        for (aside, count) in [
            (Aside::DeadLetters, activity.letters_not_kept),
            (Aside::Conflicts, activity.losers_not_kept),
        ] {
            for (quota, count) in [("device", count.device), ("all", count.all)] {
                let label = [("kind", aside.as_str()), ("quota", quota)];
                ConstCounter::new(count).encode(not_kept.encode_family(&label)?)?;
            }
        }
        Ok(())
    }
}
