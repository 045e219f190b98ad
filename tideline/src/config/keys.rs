//! The keys that agents know, as this binary was built with them.

use schema::setting::{KnownSetting, Setting};
use serde_json::json;

use crate::output::{Column, Listing, plain};

/// What the list shows.
const COLUMNS: [Column<KnownSetting>; 4] = [
    Column::new("KEY", |known| plain(known.key)),
    Column::new("VALUE", |known| plain(known.bounds)),
    Column::new("IN THE DEVICE'S FILE", |known| plain(known.in_file)),
    Column::new("WHAT", |known| plain(known.what)),
];

/// Prints every key with what it sets, what its value may be, and what it takes the place of.
pub(super) fn print(json: bool) {
    let mut listing = Listing::new(&COLUMNS, json);
    for known in &Setting::ALL {
        let raw = json!({
            "key": known.key, "what": known.what, "value": known.bounds, "in_file": known.in_file,
        });
        listing.push(&raw, known);
    }
    listing.end();
}
