//! The addresses in a settings file, with the defaults that stand in it as comments.

use std::net::SocketAddr;
use std::path::Path;

/// An address in a settings file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// An address of the machine itself, where the process listens.
    Listens(SocketAddr),
    /// A name, which the process connects to.
    Reaches { host: String, port: u16 },
}

/// Every address in a settings file of the repository.
pub(crate) fn addresses(file: &Path) -> Vec<Address> {
    let table: toml::Table = toml::from_str(&with_defaults(&super::text(file)))
        .unwrap_or_else(|error| panic!("{}, defaults included: {error}", file.display()));
    let mut found = Vec::new();
    collect(&toml::Value::Table(table), &mut found);
    found
}

/// Reads `HOST:PORT`.
pub(crate) fn address(text: &str) -> Option<Address> {
    if let Ok(address) = text.parse() {
        return Some(Address::Listens(address));
    }
    let (host, port) = text.rsplit_once(':')?;
    let is_name = host.contains(|letter: char| letter.is_ascii_alphabetic())
        && host
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || ".-_".contains(letter));
    is_name.then_some(Address::Reaches {
        host: host.to_owned(),
        port: port.parse().ok()?,
    })
}

fn collect(value: &toml::Value, found: &mut Vec<Address>) {
    match value {
        toml::Value::String(text) => found.extend(address(text)),
        toml::Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
        toml::Value::Table(table) => table.values().for_each(|value| collect(value, found)),
        _ => {}
    }
}

/// Turns `# key = value` into `key = value`: our settings files show defaults so.
fn with_defaults(text: &str) -> String {
    let uncommented = text.lines().map(|line| {
        let default = line.strip_prefix("# ").filter(|default| {
            toml::from_str::<toml::Table>(default).is_ok_and(|table| !table.is_empty())
        });
        format!("{}\n", default.unwrap_or(line))
    });
    uncommented.collect()
}

#[test]
fn addresses_are_told_apart() {
    let reaches = |host: &str, port| {
        Some(Address::Reaches {
            host: host.to_owned(),
            port,
        })
    };
    assert!(matches!(address("0.0.0.0:8883"), Some(Address::Listens(_))));
    assert_eq!(address("broker:8883"), reaches("broker", 8883));
    for other in ["broker", "info", "12:30", "https://x:1", "broker:many"] {
        assert_eq!(address(other), None, "{other}");
    }
}

#[test]
fn defaults_in_comments_count() {
    let text = "# It listens here.\n[admin]\n# http = \"127.0.0.1:9464\"\n";
    let table: toml::Table = toml::from_str(&with_defaults(text)).unwrap();
    assert_eq!(table["admin"]["http"].as_str(), Some("127.0.0.1:9464"));
}
