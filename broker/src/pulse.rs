//! Whether the routers and the listener work, asked every few seconds: a broker that nobody uses would else never notice
//! that it could not be used.
//!
//! Each router is asked on a link of its own, which sends nothing and hears its barrier come back. A router that does not
//! answer in time may be busy or hang; one that is gone ends the process (see [`crate::shard`]).

use std::sync::Arc;
use std::time::Duration;

use daemon::{Component, Failure};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::router::{Gone, Heard, Link, Router};

/// How often a router is asked, and how long it may take. A router that is fed by thousands of devices answers within
/// milliseconds.
const INTERVAL: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(2);

/// One link to each router, by its number.
pub(crate) struct Pulse {
    links: Vec<Link>,
    health: Component,
}

impl Pulse {
    /// Blocks until the routers have answered: not for async workers.
    pub(crate) fn open(routers: &[Arc<Router>], health: Component) -> Result<Self, Gone> {
        let links = routers.iter().map(Link::open);
        Ok(Self {
            links: links.collect::<Result<_, _>>()?,
            health,
        })
    }

    /// Asks until stopped.
    pub(crate) async fn run(mut self, stopping: CancellationToken) -> Result<(), Failure> {
        let mut was_well = true;
        loop {
            let silent = self.silent().await;
            match silent {
                None => {
                    if !was_well {
                        info!("all routers answer again");
                    }
                    self.health.ready();
                }
                Some(number) => {
                    if was_well {
                        warn!(router = number, "a router does not answer");
                    }
                    self.health.waiting(format!(
                        "router {number} does not answer within {PATIENCE:?}"
                    ));
                }
            }
            was_well = silent.is_none();
            tokio::select! {
                () = sleep(INTERVAL) => {}
                () = stopping.cancelled() => return Ok(()),
            }
        }
    }

    /// The first router that does not answer.
    async fn silent(&mut self) -> Option<usize> {
        for (number, link) in self.links.iter_mut().enumerate() {
            if !matches!(timeout(PATIENCE, answer(link)).await, Ok(Ok(()))) {
                return Some(number);
            }
        }
        None
    }
}

async fn answer(link: &mut Link) -> Result<(), Gone> {
    link.barrier()?;
    // An answer to an earlier question, which came late, is as good.
    while !matches!(link.next().await?, Heard::Taken) {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::RouterLimits;
    use daemon::Health;

    #[tokio::test]
    async fn routers_that_nobody_uses_are_well() {
        let limits = RouterLimits {
            links_max: 3,
            backlog_bytes: 1024 * 1024,
        };
        let routers: Vec<Arc<Router>> =
            (0..2).map(|number| Router::spawn(number, limits)).collect();
        let health = Health::default();
        let mut pulse = Pulse::open(&routers, health.component("broker-routers")).unwrap();
        for _ in 0..3 {
            assert_eq!(pulse.silent().await, None);
        }
        let stopping = CancellationToken::new();
        let running = tokio::spawn(pulse.run(stopping.clone()));
        while !health.is_ready() {
            sleep(Duration::from_millis(5)).await;
        }
        stopping.cancel();
        running.await.unwrap().unwrap();
    }
}
