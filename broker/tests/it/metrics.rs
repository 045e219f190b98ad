//! What a broker registers for monitoring: dashboards and alert rules know these names.

use prometheus_client::encoding::text;

use crate::rig::Rig;

#[tokio::test(flavor = "multi_thread")]
async fn names_helps_and_units_stay_as_they_are() {
    let rig = Rig::start().await;
    let registry = rig.registry();
    let debug = format!("{registry:?}");
    let registered = debug.split("Descriptor { ").skip(1);
    let registered = registered.filter_map(|one| one.split_once(" }").map(|(line, _)| line));
    let mut encoded = String::new();
    text::encode(&mut encoded, registry).unwrap();
    let types = encoded.lines().filter(|line| line.starts_with("# TYPE"));
    let mut lines: Vec<&str> = registered.chain(types).collect();
    lines.sort_unstable();
    let lines: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
    assert_eq!(lines, include_str!("metrics.txt"));
}
