//! Last wills: checked when a client connects, as if it published them itself then, and
//! published by the front when the connection ends without a goodbye.
//!
//! They go the way of every message, so that they are retained and reach whoever subscribes,
//! whatever router that is.

use bytes::Bytes;
use certs::Identity;
use schema::Topic;

use crate::error::Refusal;
use crate::router::Message;
use crate::rules;
use crate::shard::Submission;
use crate::wire::{Qos, RawWill};

/// A will that its client may leave.
#[derive(Debug)]
pub(crate) struct Will {
    topic: Topic,
    message: Message,
    retain: bool,
}

impl Will {
    /// Checks a will.
    pub(crate) fn admit(identity: &Identity, raw: RawWill) -> Result<Self, Refusal> {
        let topic: Topic = raw.topic.parse().map_err(|_| Refusal::Topic)?;
        rules::publish(identity, &topic).map_err(|_| Refusal::Will)?;
        if raw.qos == Qos::Two {
            return Err(Refusal::Qos2);
        }
        let message = Message {
            topic: Bytes::from(raw.topic),
            payload: raw.payload,
            qos: raw.qos,
        };
        Ok(Self {
            topic,
            message,
            retain: raw.retain,
        })
    }

    /// The will as a message to publish now.
    pub(crate) fn submission(self) -> Submission {
        Submission {
            topic: self.topic,
            message: self.message,
            retain: self.retain,
            receipt: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use certs::Role;

    use super::*;

    fn check(role: Role, topic: &str, qos: Qos, expected: Result<(), Refusal>) {
        let name = "press-7".parse().unwrap();
        let raw = RawWill {
            topic: topic.to_owned(),
            payload: Bytes::new(),
            qos,
            retain: true,
        };
        let admitted = Will::admit(&Identity { name, role }, raw).map(|_| ());
        assert_eq!(admitted, expected, "{role} {topic}");
    }

    #[test]
    fn a_will_is_what_its_client_could_publish() {
        let status = "tl/v1/press-7/up/status";
        check(Role::Device, status, Qos::One, Ok(()));
        check(Role::Device, status, Qos::Two, Err(Refusal::Qos2));
        check(
            Role::Device,
            "tl/v1/x/up/status",
            Qos::One,
            Err(Refusal::Will),
        );
        check(Role::Device, "ü", Qos::One, Err(Refusal::Topic));
        check(Role::Observer, status, Qos::One, Err(Refusal::Will));
        check(Role::Bridge, "tl/v1/x/down/ack", Qos::Zero, Ok(()));
    }
}
