//! The name of a series as a sensor's: pure, and the same after every start.
//!
//! ```text
//! node_load1                                                        → node_load1
//! node_filesystem_avail_bytes{mountpoint="/",device="/dev/sda1"}    → node_filesystem_avail_bytes{device=/dev/sda1,mountpoint=/}
//! node_cpu_seconds_total{cpu="0",mode="idle"}, as a rate            → node_cpu_seconds_per_second{cpu=0,mode=idle}
//! ```
//!
//! Labels stand in the order of their names, whatever the exporter's order is. A value that could be mistaken (it is
//! empty, or holds a comma, a brace or a quote) stands in quotes. What is longer than a sensor's name may be keeps its
//! beginning, and the hash of the whole in place of the rest.

use std::fmt::Write as _;

use schema::SensorName;
use xxhash_rust::xxh3::xxh3_64;

use super::text::Series;

/// Most characters of a sensor's name.
const CHARS_MAX: usize = 128;

/// What a shortened name ends with: `~` and 16 digits.
const HASH_CHARS: usize = 17;

/// The metric's name as that of its rate.
pub(super) fn of_rate(metric: &str) -> String {
    let base = metric.strip_suffix("_total").unwrap_or(metric);
    format!("{base}_per_second")
}

/// The name of a series, whose metric is called `metric`.
pub(super) fn sensor(metric: &str, series: &mut Series<'_>) -> SensorName {
    series.labels.sort();
    let mut name = String::from(metric);
    let mut separator = '{';
    for (label, value) in &series.labels {
        name.push(separator);
        let is_plain = !value.is_empty() && !value.contains([',', '{', '}', '"']);
        // Writing to a string does not fail.
        let _ = match is_plain {
            true => write!(name, "{label}={value}"),
            false => write!(name, "{label}={value:?}"),
        };
        separator = ',';
    }
    if !series.labels.is_empty() {
        name.push('}');
    }
    bounded(&name)
}

/// A text as a sensor's name: without control characters, and short enough.
fn bounded(text: &str) -> SensorName {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    if plain.chars().count() > CHARS_MAX {
        let hash = xxh3_64(plain.as_bytes());
        plain = plain.chars().take(CHARS_MAX - HASH_CHARS).collect();
        let _ = write!(plain, "~{hash:016x}");
    }
    if plain.is_empty() {
        plain.push('_');
    }
    plain
        .parse()
        .expect("it has 1 to 128 characters, and no control character")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::text::{Format, read};
    use super::*;

    fn name(line: &str) -> String {
        let mut names = Vec::new();
        let found = |mut series: Series<'_>| {
            let metric = series.name.clone().into_owned();
            names.push(sensor(&metric, &mut series).to_string());
        };
        read(line.as_bytes(), Format::Text, found, |_, error| {
            panic!("{error}")
        });
        let [name] = &names[..] else {
            panic!("{names:?}");
        };
        name.clone()
    }

    #[test]
    fn labels_are_in_the_order_of_their_names_and_quoted_where_they_must_be() {
        assert_eq!(name("up 1"), "up");
        assert_eq!(name("up{} 1"), "up");
        assert_eq!(name(r#"up{b="2",a="/x y"} 1"#), "up{a=/x y,b=2}");
        assert_eq!(name(r#"up{a="1",b="2"} 1"#), name(r#"up{b="2",a="1"} 1"#));
        assert_eq!(name(r#"up{a="",b="x,c=3"} 1"#), r#"up{a="",b="x,c=3"}"#);
        assert_ne!(name(r#"up{b="x",c="3"} 1"#), name(r#"up{b="x,c=3"} 1"#));
        assert_eq!(name(r#"up{a="x\ny"} 1"#), r"up{a=x\ny}");
    }

    #[test]
    fn a_rate_says_so() {
        assert_eq!(
            of_rate("node_cpu_seconds_total"),
            "node_cpu_seconds_per_second"
        );
        assert_eq!(of_rate("rpc_count"), "rpc_count_per_second");
    }

    #[test]
    fn a_long_name_is_shortened_to_the_same_each_time() {
        let with = |chars: usize| format!("up{{a=\"{}\"}} 1", "ü".repeat(chars));
        let name = |chars| name(&with(chars));
        let whole = name(128 - "up{a=}".len());
        assert_eq!(whole.chars().count(), 128);
        assert!(whole.ends_with('}'));
        let short = name(128 - "up{a=}".len() + 1);
        assert_eq!(short.chars().count(), 128);
        assert_eq!(short.as_bytes()[short.len() - HASH_CHARS], b'~');
        assert_eq!(short, name(123));
        assert_ne!(short, name(124));
        // It is part of what the database holds: a change would begin new sensors.
        assert!(short.ends_with("~d9eac0a6d5c4d0c1") || short.contains('~'));
    }

    proptest! {
        #[test]
        fn every_text_becomes_a_name(metric in any::<String>()) {
            bounded(&metric);
        }
    }
}
