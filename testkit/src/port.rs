//! Ports for processes that are told where to listen.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Below the ephemeral ports of Linux (32,768 and up), which any outgoing connection may take before the process that is
/// to have one listens.
const PORTS: Range<u16> = 20_000..32_000;

/// A port that nobody listens on, and that this process was not given before.
///
/// # Panics
///
/// When it was given all of them.
#[must_use]
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        assert!(given.len() < PORTS.len(), "no port is left");
        let port = rand::random_range(PORTS);
        if given.insert(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_is_given_once_and_no_outgoing_connection_takes_it() {
        let ephemeral = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let first: u16 = ephemeral
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let ports: BTreeSet<u16> = (0..500).map(|_| free_port()).collect();
        assert_eq!(ports.len(), 500);
        assert!(ports.iter().all(|port| *port < first), "{ports:?}");
    }
}
