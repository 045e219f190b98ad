//! What an exporter says of its metrics: `# HELP` and `# UNIT`, and what their names say by the convention of
//! Prometheus, whose base units stand at their ends.

use std::collections::HashMap;

use schema::{SensorDeclaration, SensorName, ValueType};

/// Units as OpenMetrics and names write them, and their codes in UCUM.
const UNITS: [(&str, &str); 13] = [
    ("seconds", "s"),
    ("bytes", "By"),
    ("celsius", "Cel"),
    ("ratio", "1"),
    ("percent", "%"),
    ("volts", "V"),
    ("amperes", "A"),
    ("watts", "W"),
    ("joules", "J"),
    ("grams", "g"),
    ("meters", "m"),
    ("hertz", "Hz"),
    ("pascals", "Pa"),
];

/// A series that is new.
#[derive(Debug)]
pub(super) struct Fresh {
    /// Its sensor.
    pub(super) sensor: SensorName,
    /// The name of its metric.
    pub(super) metric: String,
    /// Whether it is read as a rate.
    pub(super) is_rate: bool,
}

#[derive(Debug, Default)]
struct Family<'a> {
    help: Option<&'a str>,
    unit: Option<&'a str>,
}

/// What new series are, by the body in which they stand.
pub(super) fn declared(body: &[u8], fresh: Vec<Fresh>) -> Vec<(SensorName, SensorDeclaration)> {
    if fresh.is_empty() {
        return Vec::new();
    }
    let families = families(body);
    let declared = fresh.into_iter().map(|fresh| {
        let declaration = declaration(&fresh, &families);
        (fresh.sensor, declaration)
    });
    declared.collect()
}

fn declaration(fresh: &Fresh, families: &HashMap<&str, Family<'_>>) -> SensorDeclaration {
    let metric = fresh.metric.as_str();
    let base = metric.strip_suffix("_total").unwrap_or(metric);
    let mut part = ["_sum", "_count", "_bucket"].into_iter();
    let part = part.find_map(|end| Some((metric.strip_suffix(end)?, end)));
    let of_part = part.and_then(|(family, _)| families.get(family));
    let family = families
        .get(metric)
        .or_else(|| families.get(base))
        .or(of_part);
    let counts = matches!(part, Some((_, "_count" | "_bucket"))) && families.get(metric).is_none();
    let unit = match (family.and_then(|family| family.unit), counts) {
        (_, true) => Some("1"),
        (Some(unit), false) => Some(code(unit).unwrap_or(unit)),
        (None, false) => {
            let name = base.strip_suffix("_sum").unwrap_or(base);
            name.rsplit('_').next().and_then(code)
        }
    };
    let unit = match (unit, fresh.is_rate) {
        (unit, false) => unit.map(str::to_owned),
        // Time in a time is a number.
        (Some("s"), true) => Some("1".to_owned()),
        (unit, true) => Some(format!("{}/s", unit.unwrap_or("1"))),
    };
    SensorDeclaration {
        unit,
        description: family.and_then(|family| family.help).map(plain),
        value_type: Some(ValueType::Float),
        ..SensorDeclaration::default()
    }
}

fn code(unit: &str) -> Option<&'static str> {
    let found = UNITS.iter().find(|(name, _)| *name == unit);
    found.map(|(_, code)| *code)
}

/// The families that say something; of names in quotes nothing is read.
fn families(body: &[u8]) -> HashMap<&str, Family<'_>> {
    let mut families: HashMap<&str, Family<'_>> = HashMap::new();
    for line in body.split(|byte| *byte == b'\n') {
        let Some(rest) = line.strip_prefix(b"# ") else {
            continue;
        };
        let Ok(rest) = std::str::from_utf8(rest) else {
            continue;
        };
        let mut words = rest.splitn(3, ' ');
        let (Some(key), Some(name), Some(text)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let text = Some(text.trim()).filter(|text| !text.is_empty());
        match key {
            "HELP" => families.entry(name).or_default().help = text,
            "UNIT" => families.entry(name).or_default().unit = text,
            _ => {}
        }
    }
    families
}

/// Without the escapes that a line has.
fn plain(help: &str) -> String {
    help.replace("\\n", " ")
        .replace("\\\\", "\\")
        .replace("\\\"", "\"")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BODY: &str = "# HELP node_load1 1m load average.\n# TYPE node_load1 gauge\nnode_load1 1\n\
        # HELP cpu_seconds_total Seconds the \\\"CPUs\\\" spent\\nin each mode.\n\
        # HELP heat Heat.\n# UNIT heat kilowatts\n# HELP took_seconds How long.\n# HELP\n# UNIT x\n";

    fn read(metric: &str, is_rate: bool) -> (Option<String>, Option<String>) {
        let fresh = Fresh {
            sensor: "s".parse().unwrap(),
            metric: metric.to_owned(),
            is_rate,
        };
        let mut declared = declared(BODY.as_bytes(), vec![fresh]);
        let (_, declaration) = declared.remove(0);
        assert_eq!(declaration.value_type, Some(ValueType::Float));
        (declaration.unit, declaration.description)
    }

    #[test]
    fn units_and_helps_are_those_of_the_family_or_of_the_name() {
        for (metric, is_rate, unit, help) in [
            ("node_load1", false, None, Some("1m load average.")),
            (
                "cpu_seconds_total",
                true,
                Some("1"),
                Some("Seconds the \"CPUs\" spent in each mode."),
            ),
            ("cpu_seconds_total", false, Some("s"), None),
            ("heat", false, Some("kilowatts"), Some("Heat.")),
            ("took_seconds_sum", true, Some("1"), Some("How long.")),
            ("took_seconds_sum", false, Some("s"), Some("How long.")),
            ("took_seconds_count", true, Some("1/s"), Some("How long.")),
            ("took_seconds_bucket", false, Some("1"), Some("How long.")),
            ("free_bytes", false, Some("By"), None),
            ("read_bytes_total", true, Some("By/s"), None),
            ("requests_total", true, Some("1/s"), None),
            ("requests_total", false, None, None),
        ] {
            let (found, description) = read(metric, is_rate);
            assert_eq!(found.as_deref(), unit, "{metric}");
            if help.is_some() {
                assert_eq!(description.as_deref(), help, "{metric}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..300), text in "(# (HELP|UNIT) [a-z]{0,3} ?.{0,9}\n){0,5}", metric in "[a-z_]{0,12}") {
            for body in [&body[..], text.as_bytes()] {
                let fresh = Fresh { sensor: "s".parse().unwrap(), metric: metric.clone(), is_rate: true };
                let _ = declared(body, vec![fresh]);
            }
        }
    }
}
