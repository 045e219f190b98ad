//! What a client sends, one packet after the other.

use std::sync::Arc;

use bytes::Bytes;
use governor::clock::Clock as _;
use schema::limits::PAYLOAD_BYTES_MAX;
use schema::{DeviceId, Topic};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::{Front, OUT_BYTES_HIGH, RECEIVE_MAX};
use crate::error::{Close, Refusal};
use crate::filter::{Filter, split_topic};
use crate::lane::{Feed, Interest, Passage};
use crate::router::Message;
use crate::rules;
use crate::shard::{Mailbox, Receipt, Submission, shard_of};
use crate::wire::{self, Frame, Packet, Publish, Qos, Request};

impl<S> Front<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// Whether the client's next packet may be looked at now.
    pub(super) fn may_take(&self) -> bool {
        self.throttled.is_none()
            && self.receipts_due < RECEIVE_MAX
            && self.out.len() < OUT_BYTES_HIGH
    }

    pub(super) async fn take_packets(&mut self) -> Result<(), Close> {
        self.held = false;
        loop {
            match wire::frame(&self.inbuf).map_err(Close::Refused)? {
                Frame::Incomplete(missing) => {
                    self.missing = missing;
                    return Ok(());
                }
                Frame::Complete {
                    header,
                    body,
                    bytes,
                } => {
                    if !self.may_take() || !self.in_pace() {
                        self.held = true;
                        return Ok(());
                    }
                    let packet = self.inbuf.split_to(bytes).freeze();
                    self.owe();
                    self.take_packet(header, &packet[body..]).await?;
                }
            }
        }
    }

    /// Takes one packet's worth of the client's rate, or puts off reading until there is some.
    fn in_pace(&mut self) -> bool {
        match self.pace.check() {
            Ok(()) => true,
            Err(later) => {
                let wait = later.wait_time_from(self.pace.clock().now());
                self.throttled = Some(Instant::now() + wait);
                self.core.meters.throttled.inc();
                false
            }
        }
    }

    async fn take_packet(&mut self, header: u8, body: &[u8]) -> Result<(), Close> {
        match wire::packet(self.write.0, header, body).map_err(Close::Refused)? {
            Packet::Publish(publish) => self.publish(publish).await,
            Packet::Puback(id) => {
                self.window.release(id);
                Ok(())
            }
            Packet::Subscribe { id, requests } => self.subscribe(id, &requests).await,
            Packet::Unsubscribe { id, filters } => self.unsubscribe(id, &filters).await,
            Packet::Ping => {
                self.write.pong(&mut self.out);
                Ok(())
            }
            Packet::Disconnect { will } => Err(Close::Disconnected { will }),
        }
    }

    async fn publish(&mut self, publish: Publish<'_>) -> Result<(), Close> {
        let refuse = |refusal| Err(Close::Refused(refusal));
        if publish.qos == Qos::Two {
            return refuse(Refusal::Qos2);
        }
        if publish.payload.len() > PAYLOAD_BYTES_MAX {
            return refuse(Refusal::Oversize);
        }
        let Ok(topic) = publish.topic.parse::<Topic>() else {
            return refuse(Refusal::Topic);
        };
        rules::publish(&self.peer.identity, &topic).map_err(Close::Refused)?;
        self.meters.publishes_in.inc();
        self.meters.bytes_in.inc_by(publish.payload.len() as u64);
        let receipt = (publish.qos == Qos::One).then(|| {
            self.receipts_due += 1;
            Receipt {
                id: publish.id,
                to: self.receipt_to.clone(),
            }
        });
        // Copied, so that a log never keeps a whole read buffer for one small message.
        let message = Message {
            topic: Bytes::copy_from_slice(publish.topic.as_bytes()),
            payload: Bytes::copy_from_slice(publish.payload),
            qos: publish.qos,
        };
        let shard = &self.core.shards[shard_of(topic.device.as_str(), self.core.shards.len())];
        let submission = Submission {
            topic,
            message,
            retain: publish.retain,
            receipt,
        };
        shard.accept(submission).await
    }

    async fn subscribe(&mut self, id: u16, requests: &[Request<'_>]) -> Result<(), Close> {
        let mut answers = Vec::with_capacity(requests.len());
        let mut wanted = Vec::new();
        for request in requests {
            let answer = self.subscriptions.add(&self.peer.identity, request);
            answers.push(match answer {
                Ok(subscription) => {
                    if subscription.wants_retained {
                        wanted.push((subscription.filter.clone(), subscription.qos));
                    }
                    if let Some(key) = &subscription.group {
                        self.core
                            .shares
                            .join(key, self.number, &self.shares_changed);
                    }
                    Ok(u8::from(subscription.qos != Qos::Zero))
                }
                Err(refusal) => {
                    let identity = &self.peer.identity;
                    self.core
                        .note_refusal(identity, refusal, "subscription refused");
                    Err(refusal)
                }
            });
        }
        self.follow_subscriptions().await?;
        self.write.suback(id, &answers, &mut self.out);
        for (filter, qos) in wanted {
            self.queue_retained(&filter, qos);
        }
        Ok(())
    }

    /// Queues what is retained. A message that waits already is not queued again: however often
    /// a client subscribes, no more waits than is retained.
    fn queue_retained(&mut self, filter: &Filter, qos: Qos) {
        self.retained.retain(|message| {
            let topic = std::str::from_utf8(&message.topic).ok();
            let matched = topic
                .and_then(split_topic)
                .is_some_and(|(device, channel)| filter.matches(device, channel));
            !matched
        });
        let shards = &self.core.shards;
        match &filter.device {
            Some(device) => {
                let shard = shard_of(device.as_str(), shards.len());
                shards[shard].retained(filter, qos, &mut self.retained);
            }
            None => {
                for shard in shards.iter() {
                    shard.retained(filter, qos, &mut self.retained);
                }
            }
        }
    }

    async fn unsubscribe(&mut self, id: u16, filters: &[&str]) -> Result<(), Close> {
        let mut answers = Vec::with_capacity(filters.len());
        for filter in filters {
            let removed = self.subscriptions.remove(filter);
            // Two texts may mean the same share.
            if let Some(key) = removed.as_ref().and_then(|removed| removed.group.as_ref())
                && !self.subscriptions.has_share(key)
            {
                self.core.shares.leave(key, self.number);
            }
            answers.push(removed.is_some());
        }
        self.follow_subscriptions().await?;
        self.write.unsuback(id, &answers, &mut self.out);
        Ok(())
    }

    /// Makes what is heard what is subscribed to.
    pub(super) async fn follow_subscriptions(&mut self) -> Result<(), Close> {
        if let Some(device) = self.peer.identity.device() {
            self.follow_as_device(&device);
            return Ok(());
        }
        let mut shared = Vec::new();
        let mut interests = Vec::new();
        for subscription in self.subscriptions.iter() {
            let shards = subscription.group.as_ref().map(|key| {
                let served = self.core.shares.served(key, self.number);
                shared.push((key.clone(), served.clone()));
                served
            });
            interests.push(Interest {
                filter: subscription.filter.clone(),
                qos: subscription.qos,
                shards,
            });
        }
        if self.feed.is_none() {
            let passage = Passage {
                deliveries: self.mailbox.clone(),
                kick: Arc::clone(&self.kick),
            };
            self.feed = Some(Feed::new(
                self.peer.identity.role,
                Arc::clone(&self.core.shards),
                passage,
                self.core.tracker.clone(),
            ));
        }
        if let Some(feed) = &mut self.feed {
            feed.set(interests).await.map_err(|_| Close::Broken)?;
        }
        for (key, opened) in shared {
            self.core.shares.confirm(&key, self.number, &opened);
        }
        Ok(())
    }

    fn follow_as_device(&self, device: &DeviceId) {
        let shard = &self.core.shards[shard_of(device.as_str(), self.core.shards.len())];
        if self.subscriptions.is_empty() {
            shard.leave(device, &self.kick);
        } else {
            let mailbox = Mailbox {
                deliveries: self.mailbox.clone(),
                kick: Arc::clone(&self.kick),
            };
            shard.enter(device, mailbox);
        }
    }
}
