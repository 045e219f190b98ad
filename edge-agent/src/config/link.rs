//! The sections `[mqtt]` and `[link]`: where brokers are, the way to them, and what the link may carry.

use std::time::Duration;

use daemon::settings::Problems;
use schema::BrokerAddress;
use serde::Deserialize;

use super::raw::RawMqtt;
use crate::link::budget::{AtLimit, BYTES_MAX, BYTES_MIN, Budget, Period, parse_bytes};
use crate::link::proxy::Proxy;
use crate::link::quiet::{Offset, Schedule};
use crate::link::{BROKERS_MAX, CONNECT_TIMEOUT, LinkRules, PREFER_FIRST_AFTER};

/// Instead of a proxy's URL: the one that the environment names.
const ENVIRONMENT: &str = "environment";

/// Shortest time after which the first broker is tried again: each time is a handshake.
const PREFER_FIRST_AFTER_MIN: Duration = Duration::from_secs(60);
const PREFER_FIRST_AFTER_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long connecting may take, at least and at most.
const CONNECT_TIMEOUT_MIN: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(300);

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawLink {
    #[serde(default)]
    quiet: Vec<String>,
    quiet_keeps_connection: Option<bool>,
    utc_offset: Option<String>,
    budget: Option<String>,
    period: Option<String>,
    day: Option<u8>,
    at_limit: Option<String>,
}

/// The way to the brokers.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) brokers: Vec<BrokerAddress>,
    pub(super) prefer_first_after: Option<Duration>,
    pub(super) connect_timeout: Duration,
    pub(super) proxy: Option<Proxy>,
    pub(super) no_proxy: String,
}

impl RawMqtt {
    pub(super) fn way(&self, problems: &mut Problems) -> Way {
        let mut brokers = Vec::new();
        match (&self.address, &self.addresses) {
            (Some(_), Some(_)) => problems.add(
                "mqtt.addresses",
                "stands beside mqtt.address: give one broker as address, or all of them as addresses",
            ),
            (None, None) => problems.add(
                "mqtt.address",
                "is missing: give a broker as \"HOST:PORT\", or several as addresses",
            ),
            (Some(address), None) => brokers.extend(problems.take("mqtt.address", address.parse())),
            (None, Some(addresses)) => {
                problems.check(
                    (1..=BROKERS_MAX).contains(&addresses.len()),
                    "mqtt.addresses",
                    format!("must name from 1 to {BROKERS_MAX} brokers"),
                );
                for address in addresses {
                    let broker = problems.take("mqtt.addresses", address.parse());
                    problems.check(
                        broker.as_ref().is_none_or(|broker| !brokers.contains(broker)),
                        "mqtt.addresses",
                        format!("names {address:?} twice"),
                    );
                    brokers.extend(broker);
                }
            }
        }
        let after = self.prefer_first_after.unwrap_or(PREFER_FIRST_AFTER);
        let is_bounded = (PREFER_FIRST_AFTER_MIN..=PREFER_FIRST_AFTER_MAX).contains(&after);
        problems.check(
            after.is_zero() || is_bounded,
            "mqtt.prefer_first_after",
            "must be from 1m to 7days, or 0s to stay with a broker until it fails",
        );
        let connect_timeout = self.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
        problems.check(
            (CONNECT_TIMEOUT_MIN..=CONNECT_TIMEOUT_MAX).contains(&connect_timeout),
            "mqtt.connect_timeout",
            "must be from 1s to 5m",
        );
        let (proxy, no_proxy) = proxy(self.proxy.as_deref(), problems);
        Way {
            brokers,
            prefer_first_after: Some(after).filter(|after| !after.is_zero()),
            connect_timeout,
            proxy,
            no_proxy,
        }
    }
}

/// The proxy that a URL names, and the hosts for which it is not asked. A proxy is used because the settings say so, never because a
/// variable happens to be set.
pub(super) fn proxy(url: Option<&str>, problems: &mut Problems) -> (Option<Proxy>, String) {
    let variable = |name: &str| std::env::var(name).ok();
    match url {
        None => (None, String::new()),
        Some(ENVIRONMENT) => {
            let proxy = Proxy::of_environment(variable)
                .map_err(|error| format!("{error}, in the environment's HTTPS_PROXY"));
            let no_proxy = variable("no_proxy").or_else(|| variable("NO_PROXY"));
            let proxy = problems.take("mqtt.proxy", proxy).flatten();
            (proxy, no_proxy.unwrap_or_default())
        }
        Some(url) => (problems.take("mqtt.proxy", url.parse()), String::new()),
    }
}

impl RawLink {
    pub(super) fn check(self, problems: &mut Problems) -> LinkRules {
        let offset = self.utc_offset.as_deref().unwrap_or("UTC");
        let offset: Offset = problems
            .take("link.utc_offset", offset.parse())
            .unwrap_or_default();
        let quiet = problems.take("link.quiet", Schedule::new(&self.quiet, offset));
        let period = match self.period.as_deref() {
            None | Some("month") => {
                let day = self.day.unwrap_or(1);
                let is_in_each = (1..=28).contains(&day);
                problems.check(
                    is_in_each,
                    "link.day",
                    "must be from 1 to 28, which each month has",
                );
                Period::Month { day }
            }
            Some("day") => {
                problems.check(
                    self.day.is_none(),
                    "link.day",
                    "is of a period of months: leave it out, or set period = \"month\"",
                );
                Period::Day
            }
            Some(other) => {
                problems.add(
                    "link.period",
                    format!("must be \"month\" or \"day\", not {other:?}"),
                );
                Period::Day
            }
        };
        let at_limit = match self.at_limit.as_deref() {
            None | Some("slow") => AtLimit::Slow,
            Some("stop") => AtLimit::Stop,
            Some(other) => {
                problems.add(
                    "link.at_limit",
                    format!("must be \"slow\" or \"stop\", not {other:?}"),
                );
                AtLimit::Slow
            }
        };
        let budget = self.budget.and_then(|text| {
            let bytes = parse_bytes(&text)
                .filter(|bytes| (BYTES_MIN..=BYTES_MAX).contains(bytes))
                .ok_or_else(|| format!("must be bytes as \"500MB\", from 100kB on, not {text:?}"));
            problems.take("link.budget", bytes)
        });
        LinkRules {
            quiet: quiet.flatten(),
            quiet_closes: !self.quiet_keeps_connection.unwrap_or(true),
            budget: budget.map(|bytes| Budget {
                bytes,
                period,
                offset,
                at_limit,
            }),
        }
    }
}
