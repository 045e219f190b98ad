//! The keys that agents know, as this binary was built with them.

use schema::setting::{KnownSetting, Setting};
use serde_json::json;

use crate::output::{self, Table};

/// Prints every key with what it sets, what its value may be, and what it takes the place of.
pub(super) fn print(json: bool) {
    let mut table = Table::new(["KEY", "VALUE", "IN THE DEVICE'S FILE", "WHAT"]);
    for setting in Setting::ALL {
        let KnownSetting {
            key,
            what,
            bounds,
            in_file,
        } = setting;
        if json {
            let told = json!({ "key": key, "what": what, "value": bounds, "in_file": in_file });
            output::print(&told.to_string());
        } else {
            table.push([key, bounds, in_file, what].map(str::to_owned));
        }
    }
    if !json {
        table.print();
    }
}
