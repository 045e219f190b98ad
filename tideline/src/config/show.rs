//! Settings for people.

use serde_json::Value;

use crate::output::{self, Table, instant, plain};

/// Prints the keys; those of a device with what it says of them.
pub(super) fn print(config: &Value, of_a_device: bool) {
    let mut table = match of_a_device {
        true => Table::new(["KEY", "DESIRED", "STATE", "CHANGED", "BY"]),
        false => Table::new(["KEY", "DESIRED", "CHANGED", "BY"]),
    };
    for (key, state) in config["keys"].as_object().into_iter().flatten() {
        let mut cells = vec![output::clean(key), desired(&state["desired"])];
        if of_a_device {
            cells.push(stands(state));
        }
        cells.push(instant(&state["changed_at"]));
        cells.push(plain(&state["changed_by"]));
        table.push(cells);
    }
    table.print();
    if let Some(tag) = config["etag"].as_str() {
        output::print(&format!("tag {}", output::clean(tag)));
    }
}

/// Whether everything that is desired is in force.
pub(super) fn is_in_force(config: &Value) -> bool {
    let mut keys = config["keys"].as_object().into_iter().flatten();
    keys.all(|(_, state)| state["in_force"] == true)
}

/// What is desired, or that nothing is.
pub(super) fn desired(value: &Value) -> String {
    match value {
        Value::Null => "(as in its settings file)".to_owned(),
        value => output::clean(&value.to_string()),
    }
}

fn stands(state: &Value) -> String {
    match (state["failure"].as_str(), &state["in_force"]) {
        (Some(reason), _) => format!("NOT in force: {}", output::clean(reason)),
        (None, Value::Bool(true)) => "in force".to_owned(),
        (None, _) => "not heard of yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn states_say_what_is_in_force() {
        assert_eq!(stands(&json!({"in_force": true})), "in force");
        assert_eq!(stands(&json!({"in_force": false})), "not heard of yet");
        assert_eq!(
            stands(&json!({"in_force": false, "failure": "no such sensor"})),
            "NOT in force: no such sensor"
        );
        assert!(is_in_force(&json!({"keys": {}})));
        assert!(!is_in_force(
            &json!({"keys": {"a": {"in_force": true}, "b": {"in_force": false}}})
        ));
    }
}
