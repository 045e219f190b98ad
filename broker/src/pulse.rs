//! Whether the routers and the listener work, asked every few seconds: a broker that nobody uses would else never notice
//! that it could not be used.
//!
//! Each router is asked on a link of its own: a barrier goes in, and its answer comes back. One barrier at a time is on its
//! way: an answer that came late, to a question that was given up, would else be taken for that of the next question,
//! which nobody may have heard. A router that does not answer in time may be busy or hang; one that is gone ends the
//! process (see [`crate::shard`]).

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
    probes: Vec<Probe>,
    health: Component,
}

/// A router that is asked.
struct Probe {
    link: Link,
    /// A barrier is on its way.
    is_open: bool,
}

impl Pulse {
    /// Blocks until the routers have answered: not for async workers.
    pub(crate) fn open(routers: &[Arc<Router>], health: Component) -> Result<Self, Gone> {
        let probes = routers.iter().map(|router| {
            let link = Link::open(router)?;
            Ok(Probe {
                link,
                is_open: false,
            })
        });
        Ok(Self {
            probes: probes.collect::<Result<_, _>>()?,
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
        for (number, probe) in self.probes.iter_mut().enumerate() {
            if !matches!(timeout(PATIENCE, probe.answer()).await, Ok(Ok(()))) {
                return Some(number);
            }
        }
        None
    }
}

impl Probe {
    /// Waits for the answer to the barrier that is on its way, or to a new one.
    async fn answer(&mut self) -> Result<(), Gone> {
        if !self.is_open {
            self.link.barrier()?;
            self.is_open = true;
        }
        while !matches!(self.link.next().await?, Heard::Taken) {}
        self.is_open = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::RouterLimits;
    use daemon::Health;

    const LIMITS: RouterLimits = RouterLimits {
        links_max: 3,
        backlog_bytes: 1024 * 1024,
    };

    #[tokio::test]
    async fn routers_that_nobody_uses_are_well() {
        let routers: Vec<Arc<Router>> =
            (0..2).map(|number| Router::spawn(number, LIMITS)).collect();
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

    #[tokio::test]
    async fn a_router_that_hangs_is_found_out_each_time() {
        let router = Router::spawn(0, LIMITS);
        let mut blocker = Link::open(&router).unwrap();
        let health = Health::default();
        let mut pulse = Pulse::open(&[router], health.component("broker-routers")).unwrap();
        for _ in 0..2 {
            assert_eq!(pulse.silent().await, None);
            // The router wants what this link sent, and waits for it.
            let hang = loop {
                blocker.barrier().unwrap();
                let untaken = blocker.untaken();
                if !untaken.is_empty() {
                    break untaken;
                }
            };
            assert_eq!(pulse.silent().await, Some(0));
            drop(hang);
            let again = timeout(Duration::from_secs(10), pulse.probes[0].answer());
            assert_eq!(again.await, Ok(Ok(())));
        }
    }
}
