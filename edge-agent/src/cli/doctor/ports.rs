//! Who has the admin address and the buffer: this agent, another one, or another program.

use std::io::ErrorKind;

use tokio::net::TcpListener;

use super::Finding;
use crate::buffer::is_in_use;
use crate::config::Sketch;
use crate::status::Status;

pub(super) async fn check(sketch: &Sketch, running: Option<&Status>) -> Vec<Finding> {
    let address = sketch.admin;
    let admin = match running {
        Some(status) => Finding::ok(
            "admin",
            format!("the agent of {} answers at {address}", status.device),
        ),
        // Let go of at once: an agent that starts just now tries again.
        None => match TcpListener::bind(address).await {
            Ok(_) => Finding::ok("admin", format!("{address} is free")),
            Err(error) if error.kind() == ErrorKind::AddrInUse => Finding::fail(
                "admin",
                format!("{address} is taken by another program"),
                "stop that program (ss -ltnp names it), or choose another [admin] http address",
            ),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Finding::fail(
                "admin",
                format!("{address} may not be listened on: {error}"),
                "choose an [admin] http port of 1024 or above",
            ),
            Err(error) => Finding::fail(
                "admin",
                format!("{address} cannot be listened on: {error}"),
                "choose an address of this machine for [admin] http, as 127.0.0.1:9464",
            ),
        },
    };
    let mut findings = vec![admin];
    let Some(buffer) = &sketch.buffer else {
        return findings;
    };
    let name = buffer.display();
    findings.push(match (is_in_use(buffer), running) {
        (Some(true), Some(_)) => Finding::ok("lock", format!("the agent has {name}")),
        (Some(true), None) => Finding::fail(
            "lock",
            format!("another agent has {name}, and none answers at {address}"),
            "stop it (fuser names it), or give this one a buffer and an admin address of its own",
        ),
        (Some(false), Some(status)) => Finding::warn(
            "lock",
            format!(
                "nobody has {name}: the agent of {} at {address} has another buffer",
                status.device
            ),
            "give each agent an admin address of its own",
        ),
        (Some(false), None) => Finding::ok("lock", format!("nobody has {name}")),
        (None, _) => Finding::warn(
            "lock",
            format!("whether somebody has {name} is not known: its lock cannot be read"),
            "run this as the agent's user",
        ),
    });
    findings
}
