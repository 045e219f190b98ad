//! Whether this machine's clock can be right, and whether somebody keeps it so.

use schema::message::ClockState;
use schema::timestamp::rfc3339;

use super::Finding;
use crate::clock::AgentClock;
use crate::status::Status;

/// By how much a clock may be off that nobody corrects.
const OFFSET_MS: u64 = 5_000;

const CHECK: &str = "clock";

pub(super) fn check(clock: &AgentClock, running: Option<&Status>) -> Vec<Finding> {
    let servers = clock.servers();
    let says = rfc3339(clock.wall_ms().saturating_mul(1000));
    if servers.is_wrong() {
        let floor = rfc3339(servers.floor().saturating_mul(1_000_000));
        let what = format!("it says {says}, and {floor} has certainly passed");
        let mend = "set the clock, or have a time daemon set it (timedatectl set-ntp true); readings wait until the \
                    time is known";
        return vec![Finding::fail(CHECK, what, mend)];
    }
    let offset = running.and_then(|status| status.clock.offset_ms);
    let is_synchronised =
        clock.is_known() || running.is_some_and(|status| status.clock.state == ClockState::Kernel);
    vec![match offset {
        Some(offset) if offset.unsigned_abs() > OFFSET_MS => Finding::warn(
            CHECK,
            format!("it says {says}, {offset:+} ms against the database's"),
            "have a time daemon set it (timedatectl set-ntp true); the agent mends its own readings meanwhile",
        ),
        _ if is_synchronised => Finding::ok(CHECK, format!("{says}, synchronised")),
        _ => Finding::warn(
            CHECK,
            format!("it says {says}, and nobody is known to synchronise it"),
            "run a time daemon that touches [clock] synchronised_file, as systemd-timesyncd does; without one \
             readings wait until a bridge has told the time",
        ),
    }]
}
