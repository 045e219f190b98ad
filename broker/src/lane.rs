//! The way out of the routers to one service: a lane for each shard that it hears, and the
//! filters that its lanes let through.
//!
//! A lane hears a whole direction of its shard and passes on what the connection subscribed to.
//! Routers so know two filters, however many a service has: each new one would cost them a log
//! for ever, and a look at every topic. A service whose mailbox is full delays its own lanes; the
//! routers go on, and what it misses in the end is counted.

use std::sync::{Arc, PoisonError, RwLock};

use certs::Role;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::error::Close;
use crate::filter::{Filter, split_topic};
use crate::meters::Meters;
use crate::router::{Direction, Gaps, Gone, Heard, Link, Message, Router};
use crate::seats::Kick;
use crate::shard::{Delivery, Shard};
use crate::wire::Qos;

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
    lanes: Vec<Option<DropGuard>>,
    interests: Interests,
    passage: Passage,
    tracker: TaskTracker,
}

/// Where lanes lead.
#[derive(Debug, Clone)]
pub(crate) struct Passage {
    pub(crate) deliveries: mpsc::Sender<Delivery>,
    pub(crate) kick: Arc<Kick>,
    pub(crate) meters: Meters,
}

type Interests = Arc<RwLock<Vec<Interest>>>;

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
            lanes: shards.iter().map(|_| None).collect(),
            shards,
            interests: Arc::default(),
            passage,
            tracker,
        }
    }

    /// Opens and ends lanes so that these interests are served. When this returns, whatever is
    /// published later is heard.
    pub(crate) async fn set(&mut self, interests: Vec<Interest>) -> Result<(), Gone> {
        let count = self.shards.len();
        let needed = |shard| interests.iter().any(|i| i.needs(shard, count));
        let mut missing = Vec::new();
        for shard in 0..count {
            match (needed(shard), &self.lanes[shard]) {
                (true, None) => missing.push(shard),
                (false, Some(_)) => self.lanes[shard] = None,
                (true, Some(_)) | (false, None) => {}
            }
        }
        *self
            .interests
            .write()
            .unwrap_or_else(PoisonError::into_inner) = interests;
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
            self.begin(shard, link);
        }
        Ok(())
    }

    fn begin(&mut self, shard: usize, link: Link) {
        let stop = CancellationToken::new();
        let lane = Lane {
            shard,
            link,
            interests: Arc::clone(&self.interests),
            passage: self.passage.clone(),
            stop: stop.clone(),
        };
        self.tracker.spawn(lane.run());
        self.lanes[shard] = Some(stop.drop_guard());
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
    interests: Interests,
    passage: Passage,
    stop: CancellationToken,
}

impl Lane {
    async fn run(mut self) {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            Err(Gone) = self.pass() => self.passage.kick.kick(Close::Broken),
        }
    }

    async fn pass(&mut self) -> Result<std::convert::Infallible, Gone> {
        let mut gaps = Gaps::default();
        loop {
            match self.link.next().await? {
                Heard::Message(direction, message, offset) => {
                    let missing = gaps.before(direction, offset);
                    self.passage.meters.backlog_dropped.inc_by(missing);
                    if let Some(delivery) = self.admit(message)
                        && self.passage.deliveries.send(delivery).await.is_err()
                    {
                        // The connection is gone, and so will be this lane in a moment.
                        std::future::pending::<()>().await;
                    }
                }
                Heard::Full => self.link.resume().await?,
                Heard::Taken => {}
            }
        }
    }

    /// The message as the connection subscribed to it: once, with the best of its subscriptions.
    fn admit(&self, mut message: Message) -> Option<Delivery> {
        let topic = std::str::from_utf8(&message.topic).ok()?;
        let (device, channel) = split_topic(topic)?;
        let qos = self
            .interests
            .read()
            .unwrap_or_else(PoisonError::into_inner)
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
