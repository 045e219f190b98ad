//! The answer to a birth and to a question for the time: which bridge hears the device, and what time
//! the database has. Sent at once, beside all queues: how long it was under way says how exact it is.

use schema::message::{Downlink, Hello, PROTOCOL, Status};

/// The first agents that understand an answer, as major and minor version.
const SINCE: (u64, u64) = (0, 2);

/// The nonce of the answer to a birth, of an agent that understands one.
pub(super) fn of_birth(status: &Status) -> Option<u64> {
    match status {
        Status::Online {
            session,
            agent_version,
            ..
        } => understands(agent_version).then_some(*session),
        Status::Offline { .. } => None,
    }
}

/// The answer.
pub(super) fn hello(nonce: u64, now_ms: u64) -> Downlink {
    Downlink::Hello(Hello {
        nonce,
        bridge_time_ms: i64::try_from(now_ms).unwrap_or(i64::MAX),
        protocol: PROTOCOL,
    })
}

fn understands(version: &str) -> bool {
    let mut numbers = version.split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= SINCE,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_from_before_hear_nothing_that_they_do_not_know() {
        for (version, expected) in [
            ("0.2.0", true),
            ("0.2", true),
            ("0.10.1", true),
            ("1.0.0", true),
            ("0.1.0", false),
            ("0.1.99", false),
            ("", false),
            ("x.y", false),
        ] {
            assert_eq!(understands(version), expected, "{version}");
        }
    }
}
