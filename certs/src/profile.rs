//! What a certificate of each role is like: how long it holds, and what it is good for.
//!
//! Plain values; [`crate::authority`] turns them into certificates.

use rustls::pki_types::ServerName;
use time::{Duration, OffsetDateTime};

use crate::error::CertsError;
use crate::identity::Role;

/// Certificates begin a day ago: a clock that shows local time as UTC must not refuse them.
pub const BACKDATED: Duration = Duration::days(1);

/// How long the authority itself is good: longer than most devices live.
pub const AUTHORITY_DAYS: u32 = 3650;

/// The most days that can be asked for.
pub const DAYS_MAX: u32 = 7300;

/// With fewer days left than this, a certificate is due for renewal.
pub const RENEW_DAYS: i64 = 30;

/// The most hosts of one server.
pub const HOSTS_MAX: usize = 100;

/// Hosts of a server that is reached from its own machine alone.
pub const LOCAL_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The one name that servers have.
pub const SERVER_NAME: &str = "broker";

/// From when to when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: OffsetDateTime,
    /// The last second.
    pub not_after: OffsetDateTime,
}

impl Validity {
    /// From a day before `now` to `days` after it.
    #[must_use]
    pub fn starting(now: OffsetDateTime, days: u32) -> Self {
        // Certificates tell whole seconds.
        let now = now.replace_nanosecond(0).unwrap_or(now);
        Self {
            not_before: now - BACKDATED,
            not_after: now + Duration::days(i64::from(days)),
        }
    }

    /// Not longer than the authority's own.
    #[must_use]
    pub fn within(self, authority: Self) -> Self {
        Self {
            not_after: self.not_after.min(authority.not_after),
            ..self
        }
    }
}

/// How long a certificate of a role is good, in days, unless the command says otherwise: servers
/// and services are renewed by their operator once a year, with a month to spare; devices are
/// harder to reach, and a stolen one is on the revocation list long before its certificate ends.
#[must_use]
pub const fn default_days(role: Role) -> u32 {
    match role {
        Role::Server | Role::Bridge | Role::Observer => 397,
        Role::Device => 825,
    }
}

/// Checks that a server can be reached under each of its hosts.
///
/// # Errors
/// [`CertsError::Host`] for the first that is neither a DNS name nor an address, and
/// [`CertsError::Hosts`] when there are none or too many.
pub fn check_hosts(hosts: &[String]) -> Result<(), CertsError> {
    if hosts.is_empty() || hosts.len() > HOSTS_MAX {
        return Err(CertsError::Hosts {
            found: hosts.len(),
            max: HOSTS_MAX,
        });
    }
    for host in hosts {
        // A wildcard stands for one label: what follows it must be a name.
        let name = host.strip_prefix("*.").unwrap_or(host);
        if ServerName::try_from(name).is_err() {
            return Err(CertsError::Host(host.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(hosts: &[&str]) -> bool {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        check_hosts(&hosts).is_ok()
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        for host in [
            "localhost",
            "broker.example.com",
            "*.example.com",
            "192.0.2.7",
            "2001:db8::7",
        ] {
            assert!(check(&[host]), "{host}");
        }
        for host in [
            "",
            "https://broker",
            "broker:8883",
            "a b",
            "-",
            "bröker",
            "*.*.com",
            "*.",
        ] {
            assert!(!check(&[host]), "{host}");
        }
    }

    #[test]
    fn hosts_are_counted() {
        assert!(!check(&[]));
        assert!(check(&vec!["a"; HOSTS_MAX]));
        assert!(!check(&vec!["a"; HOSTS_MAX + 1]));
    }

    #[test]
    fn nothing_outlives_its_authority() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let authority = Validity::starting(now, 10);
        let capped = Validity::starting(now, 11).within(authority);
        assert_eq!(capped.not_after, authority.not_after);
        assert_eq!(
            Validity::starting(now, 9).within(authority),
            Validity::starting(now, 9)
        );
    }
}
