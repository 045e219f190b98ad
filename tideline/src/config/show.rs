//! Settings for people.

use api::config::{ConfigBody, KeyBody};
use api::groups::GroupConfig;
use serde_json::Value;

use crate::output::{self, Table, instant, plain};

/// Prints a device's keys, with what it says of them.
pub(super) fn device(config: &ConfigBody, tag: Option<&str>) {
    let mut table = Table::new(["KEY", "DESIRED", "STATE", "CHANGED", "BY"]);
    for (key, state) in &config.keys {
        table.push([
            output::clean(key),
            desired(&state.desired),
            stands(state),
            instant(&state.changed_at),
            plain(&state.changed_by),
        ]);
    }
    print(&table, tag);
}

/// Prints a group's keys.
pub(super) fn group(config: &GroupConfig, tag: Option<&str>) {
    let mut table = Table::new(["KEY", "DESIRED", "CHANGED", "BY"]);
    for (key, state) in &config.keys {
        table.push([
            output::clean(key),
            desired(&state.desired),
            instant(&state.changed_at),
            plain(&state.changed_by),
        ]);
    }
    print(&table, tag);
}

fn print(table: &Table, tag: Option<&str>) {
    table.print();
    if let Some(tag) = tag {
        output::print(&format!("tag {}", output::clean(tag)));
    }
}

/// Whether everything that is desired is in force.
pub(super) fn is_in_force(config: &ConfigBody) -> bool {
    config.keys.values().all(|state| state.in_force)
}

/// What is desired, or that nothing is.
pub(super) fn desired(value: &Value) -> String {
    match value {
        Value::Null => "(as in its settings file)".to_owned(),
        value => output::clean(&value.to_string()),
    }
}

fn stands(state: &KeyBody) -> String {
    match (&state.failure, state.in_force) {
        (Some(reason), _) => format!("NOT in force: {}", output::clean(reason)),
        (None, true) => "in force".to_owned(),
        (None, false) => "not heard of yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(in_force: bool, failure: Option<&str>) -> KeyBody {
        KeyBody {
            in_force,
            failure: failure.map(str::to_owned),
            ..KeyBody::default()
        }
    }

    #[test]
    fn states_say_what_is_in_force() {
        assert_eq!(stands(&key(true, None)), "in force");
        assert_eq!(stands(&key(false, None)), "not heard of yet");
        assert_eq!(
            stands(&key(false, Some("no such sensor"))),
            "NOT in force: no such sensor"
        );
        let of = |keys: &[(&str, bool)]| ConfigBody {
            device: "press-7".to_owned(),
            keys: keys
                .iter()
                .map(|&(name, in_force)| (name.to_owned(), key(in_force, None)))
                .collect(),
        };
        assert!(is_in_force(&of(&[])));
        assert!(!is_in_force(&of(&[("a", true), ("b", false)])));
    }
}
