//! Failed attempts, limited by address: guessing is slow, and the audit stays readable.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;

use governor::clock::DefaultClock;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

/// Failed attempts of one address: so many at once, and as many in a minute.
const FAILED_MAX: NonZeroU32 = NonZeroU32::new(10).expect("ten is not zero");

/// Addresses that are remembered; when there are more, they share one limit.
const ADDRESSES_MAX: usize = 10_000;

/// Who failed, and how often.
#[derive(Debug)]
pub(super) struct Attempts {
    by_address: RateLimiter<IpAddr, HashMapStateStore<IpAddr>, DefaultClock>,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            by_address: RateLimiter::hashmap(Quota::per_minute(FAILED_MAX)),
        }
    }
}

impl Attempts {
    /// Counts one failed attempt, and says whether there were too many before it.
    pub(super) fn is_one_too_many(&self, address: IpAddr) -> bool {
        let mut network = network(address);
        if self.by_address.len() >= ADDRESSES_MAX {
            self.by_address.retain_recent();
            if self.by_address.len() >= ADDRESSES_MAX {
                network = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            }
        }
        self.by_address.check_key(&network).is_err()
    }
}

/// One subscriber has 2^64 addresses of the newer kind.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let bits = address.to_bits() >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        }
        older => older,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_attempts_may_fail_and_not_one_more() {
        let attempts = Attempts::default();
        let [first, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        for _ in 0..FAILED_MAX.get() {
            assert!(!attempts.is_one_too_many(first));
        }
        assert!(attempts.is_one_too_many(first));
        assert!(!attempts.is_one_too_many(other));
    }

    #[test]
    fn neighbours_in_one_network_count_together() {
        let attempts = Attempts::default();
        for host in 0..FAILED_MAX.get() {
            let address = format!("2001:db8::{host:x}").parse().unwrap();
            assert!(!attempts.is_one_too_many(address));
        }
        assert!(attempts.is_one_too_many("2001:db8::ffff".parse().unwrap()));
        assert!(!attempts.is_one_too_many("2001:db8:0:1::1".parse().unwrap()));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let attempts = Attempts::default();
        for number in 0..(2 * ADDRESSES_MAX as u32) {
            attempts.is_one_too_many(IpAddr::V4(number.into()));
        }
        assert!(attempts.by_address.len() <= ADDRESSES_MAX + 1);
    }
}
