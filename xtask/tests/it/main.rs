//! The files that start Tideline in containers, checked as far as can be without a container
//! engine: they parse, what they name exists, and the real binaries accept every command line.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "files of this repository: whatever is wrong with them fails a test"
)]

mod compose;
mod consistency;
mod dockerfile;
mod rehearsal;
mod settings;

use std::path::Path;

/// The root of the repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The text of a file of the repository.
fn text(file: impl AsRef<Path>) -> String {
    let file = file.as_ref();
    std::fs::read_to_string(root().join(file))
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Fails with every problem, one a line.
#[track_caller]
fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n  {}\n", problems.join("\n  "));
}
