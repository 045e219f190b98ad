//! The kinds of sources: a line for each.

use std::sync::Arc;

use super::config::Section;
use super::{Source, host, replay, simulate, socket};

/// Reads the section of a source of one kind; `None` when a problem was noted that leaves no source.
pub(super) type Read = fn(&mut Section<'_>) -> Option<Arc<dyn Source>>;

/// In the order of their names.
const KINDS: &[(&str, Read)] = &[
    #[cfg(feature = "exec")]
    (super::exec::KIND, super::exec::read),
    #[cfg(feature = "file")]
    (super::file::KIND, super::file::read),
    (host::KIND, host::read),
    #[cfg(feature = "modbus")]
    (super::modbus::KIND, super::modbus::read),
    #[cfg(feature = "mqtt")]
    (super::mqtt::KIND, super::mqtt::read),
    #[cfg(feature = "prometheus")]
    (super::prometheus::KIND, super::prometheus::read),
    (replay::KIND, replay::read),
    (simulate::KIND, simulate::read),
    (socket::KIND, socket::read),
];

/// How a kind is read.
pub(super) fn find(kind: &str) -> Option<Read> {
    KINDS
        .iter()
        .find(|(name, _)| *name == kind)
        .map(|(_, read)| *read)
}

/// All names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(name, _)| *name)
}
