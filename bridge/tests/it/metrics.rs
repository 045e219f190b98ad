//! What a bridge registers for monitoring: dashboards and alert rules know these names.

use bridge::{Bridge, Config};
use certs::Folder;
use certs::set::MachineSet;
use daemon::{Health, Lifecycle};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use store::location::Location;

#[tokio::test]
async fn names_helps_and_units_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let database = Location::Embedded(folder.path().join("store.db"));
    let certs = Folder::new(folder.path().join("certs"));
    let device = "device-1".parse().unwrap();
    let set = MachineSet::ensure(&certs, &device, &["localhost".to_owned()]).unwrap();
    let mut config = Config::new("127.0.0.1".to_owned(), 1, set.bridge, "test", database);
    config.http.address = ([127, 0, 0, 1], 0).into();
    let (lifecycle, health) = (Lifecycle::new(), Health::default());
    let mut registry = Registry::default();
    Bridge::start(config, &lifecycle, &health, &mut registry)
        .await
        .unwrap();
    lifecycle.stop();
    assert_eq!(described(&registry), include_str!("metrics.txt"));
}

/// A line for each metric that is registered, and the types of those that have a value, sorted.
fn described(registry: &Registry) -> String {
    let debug = format!("{registry:?}");
    let registered = debug.split("Descriptor { ").skip(1);
    let registered = registered.filter_map(|one| one.split_once(" }").map(|(line, _)| line));
    let mut encoded = String::new();
    text::encode(&mut encoded, registry).unwrap();
    let types = encoded.lines().filter(|line| line.starts_with("# TYPE"));
    let mut lines: Vec<&str> = registered.chain(types).collect();
    lines.sort_unstable();
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}
