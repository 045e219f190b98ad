//! The way out of the routers to one service: a lane for each shard that it hears, and the
//! filters that its lanes let through.
//!
//! A lane hears a whole direction of its shard and passes on what the connection subscribed to.
//! Routers so know two filters, however many a service has: each new one would cost them a log
//! for ever, and a look at every topic. A service whose mailbox is full delays its own lanes; the
//! routers go on, and what it misses in the end is counted.
//!
//! A lane that is no longer needed, since its shard went to another member of the group, first
//! passes on what was in the log by then: the other hears only what came after it had opened.

use std::sync::Arc;
use std::time::Duration;

use certs::Role;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::error::Close;
use crate::filter::{Filter, split_topic};
use crate::router::{Direction, Gone, Heard, Link, Message, Router};
use crate::seats::Kick;
use crate::shard::{Delivery, Shard};
use crate::wire::Qos;

/// How long a lane that is no longer needed may take to pass on the rest. Devices send again
/// what is cut off.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// What a service wants to hear, from all shards or from some.
#[derive(Debug, Clone)]
pub(crate) struct Interest {
    pub(crate) filter: Filter,
    pub(crate) qos: Qos,
    /// The shards of a shared subscription that are this member's, ascending; `None` for all.
    pub(crate) shards: Option<Vec<usize>>,
}

/// All lanes of one connection.
pub(crate) struct Feed {
    shards: Arc<[Arc<Shard>]>,
    hears: &'static [Direction],
    lanes: Vec<Handle>,
    passage: Passage,
    tracker: TaskTracker,
}

/// What a connection holds of the lanes to one shard.
#[derive(Default)]
struct Handle {
    /// Sends the lane what it lets through; without it the lane leaves, with the last that it was sent.
    interests: Option<watch::Sender<Interests>>,
    /// Ends the lane at once, leaving or not.
    _stop: Option<DropGuard>,
}

/// Where lanes lead.
#[derive(Debug, Clone)]
pub(crate) struct Passage {
    pub(crate) deliveries: mpsc::Sender<Delivery>,
    pub(crate) kick: Arc<Kick>,
}

type Interests = Arc<[Interest]>;

impl Interest {
    fn covers(&self, shard: usize) -> bool {
        self.shards
            .as_ref()
            .is_none_or(|shards| shards.binary_search(&shard).is_ok())
    }

    /// Whether this needs a lane to a shard at all.
    fn needs(&self, shard: usize, count: usize) -> bool {
        let elsewhere = |only: &str| crate::shard::shard_of(only, count) != shard;
        let device = self.filter.device.as_ref();
        !self.filter.channels.is_empty()
            && self.covers(shard)
            && !device.is_some_and(|only| elsewhere(only.as_str()))
    }
}

impl Feed {
    pub(crate) fn new(
        role: Role,
        shards: Arc<[Arc<Shard>]>,
        passage: Passage,
        tracker: TaskTracker,
    ) -> Self {
        let hears: &[Direction] = match role {
            Role::Bridge => &[Direction::Up],
            Role::Observer | Role::Device | Role::Server => &[Direction::Up, Direction::Down],
        };
        Self {
            hears,
            lanes: shards.iter().map(|_| Handle::default()).collect(),
            shards,
            passage,
            tracker,
        }
    }

    /// Opens and ends lanes so that these interests are served. When this returns, whatever is
    /// published later is heard.
    pub(crate) async fn set(&mut self, interests: Vec<Interest>) -> Result<(), Gone> {
        let count = self.shards.len();
        let interests: Interests = interests.into();
        let mut missing = Vec::new();
        for (shard, lane) in self.lanes.iter_mut().enumerate() {
            if !interests.iter().any(|i| i.needs(shard, count)) {
                lane.interests = None;
            } else if let Some(sender) = &lane.interests {
                sender.send_replace(Arc::clone(&interests));
            } else {
                missing.push(shard);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let routers: Vec<(usize, Arc<Router>)> = missing
            .into_iter()
            .map(|shard| (shard, Arc::clone(&self.shards[shard].router)))
            .collect();
        let hears = self.hears;
        // Connecting to a router blocks until it answers.
        let opened = tokio::task::spawn_blocking(move || open(routers, hears)).await;
        for (shard, link) in opened.map_err(|_| Gone)?? {
            self.begin(shard, link, Arc::clone(&interests));
        }
        Ok(())
    }

    /// Begins a lane; one to the same shard that is still leaving ends.
    fn begin(&mut self, shard: usize, link: Link, interests: Interests) {
        let stop = CancellationToken::new();
        let (sender, interests) = watch::channel(interests);
        let lane = Lane {
            shard,
            link,
            hears: self.hears,
            interests,
            passage: self.passage.clone(),
            backlog_dropped: self.shards[shard].meters.backlog_dropped.clone(),
        };
        self.tracker.spawn(lane.run(stop.clone()));
        self.lanes[shard] = Handle {
            interests: Some(sender),
            _stop: Some(stop.drop_guard()),
        };
    }
}

fn open(
    routers: Vec<(usize, Arc<Router>)>,
    hears: &[Direction],
) -> Result<Vec<(usize, Link)>, Gone> {
    let mut links = Vec::with_capacity(routers.len());
    for (shard, router) in routers {
        let mut link = Link::open(&router)?;
        for direction in hears {
            link.subscribe(*direction)?;
        }
        links.push((shard, link));
    }
    Ok(links)
}

struct Lane {
    shard: usize,
    link: Link,
    hears: &'static [Direction],
    interests: watch::Receiver<Interests>,
    passage: Passage,
    backlog_dropped: Counter,
}

impl Lane {
    async fn run(mut self, stop: CancellationToken) {
        let kick = Arc::clone(&self.passage.kick);
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            passed = self.pass() => if passed.is_err() {
                kick.kick(Close::Broken);
            }
        }
    }

    /// Passes messages on until the lane is no longer needed, and then the rest.
    async fn pass(&mut self) -> Result<(), Gone> {
        let mut interests = self.interests.clone();
        loop {
            let heard = tokio::select! {
                biased;
                changed = interests.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => break,
                },
                heard = self.link.next() => heard?,
            };
            self.handle(heard).await?;
        }
        for direction in self.hears {
            self.link.mark(*direction)?;
        }
        match timeout(LEAVE_PATIENCE, self.pass_to_marks()).await {
            Ok(passed) => passed,
            Err(_) => Ok(()),
        }
    }

    async fn pass_to_marks(&mut self) -> Result<(), Gone> {
        let mut marks = 0;
        while marks < self.hears.len() {
            match self.link.next().await? {
                Heard::Mark => marks += 1,
                heard => self.handle(heard).await?,
            }
        }
        Ok(())
    }

    async fn handle(&mut self, heard: Heard) -> Result<(), Gone> {
        match heard {
            Heard::Message(message, missing) => {
                self.backlog_dropped.inc_by(missing);
                if let Some(delivery) = self.admit(message)
                    && self.passage.deliveries.send(delivery).await.is_err()
                {
                    // The connection is gone, and so will be this lane in a moment.
                    std::future::pending::<()>().await;
                }
                Ok(())
            }
            Heard::Full => self.link.resume().await,
            Heard::Taken | Heard::Mark => Ok(()),
        }
    }

    /// The message as the connection subscribed to it: once, with the best of its subscriptions.
    fn admit(&self, mut message: Message) -> Option<Delivery> {
        let topic = std::str::from_utf8(&message.topic).ok()?;
        let (device, channel) = split_topic(topic)?;
        let qos = self
            .interests
            .borrow()
            .iter()
            .filter(|i| i.covers(self.shard) && i.filter.matches(device, channel))
            .map(|interest| interest.qos)
            .max()?;
        message.qos = message.qos.min(qos);
        Some(Delivery {
            message,
            retained: false,
        })
    }
}
