//! What one connection subscribes to. Pure.
//!
//! Invariant: one entry a filter text, and no more than the bound.

use certs::Identity;

use crate::error::Refusal;
use crate::filter::{Filter, Requested};
use crate::rules;
use crate::shares::GroupKey;
use crate::wire::{Qos, Request};

/// Most subscriptions of one connection.
const SUBSCRIPTIONS_MAX: usize = 64;

/// One subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subscription {
    text: String,
    pub(crate) filter: Filter,
    /// What was granted: never more than QoS 1.
    pub(crate) qos: Qos,
    pub(crate) group: Option<GroupKey>,
    /// Whether retained messages are to be sent now.
    pub(crate) wants_retained: bool,
}

/// All subscriptions of a connection.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    list: Vec<Subscription>,
}

impl Subscriptions {
    /// Decides about a request, and adds it if it is allowed; it takes the place of an earlier
    /// one with the same text.
    pub(crate) fn add(
        &mut self,
        identity: &Identity,
        request: &Request<'_>,
    ) -> Result<&Subscription, Refusal> {
        let requested = Requested::parse(request.filter).map_err(|_| Refusal::Filter)?;
        rules::subscribe(identity, &requested)?;
        // A log does not know who published what.
        if request.no_local {
            return Err(Refusal::Option);
        }
        let at = self.position(request.filter);
        if at.is_none() && self.list.len() >= SUBSCRIPTIONS_MAX {
            return Err(Refusal::Subscriptions);
        }
        let Requested { group, filter } = requested;
        let role = identity.role;
        let group = group.map(|group| GroupKey {
            role,
            group,
            filter: filter.clone(),
        });
        let is_requested = match request.retain_handling {
            0 => true,
            1 => at.is_none(),
            _ => false,
        };
        let subscription = Subscription {
            text: request.filter.to_owned(),
            filter,
            qos: request.qos.min(Qos::One),
            wants_retained: is_requested && group.is_none(),
            group,
        };
        let at = match at {
            Some(at) => {
                self.list[at] = subscription;
                at
            }
            None => {
                self.list.push(subscription);
                self.list.len() - 1
            }
        };
        Ok(&self.list[at])
    }

    /// Takes a subscription out.
    pub(crate) fn remove(&mut self, text: &str) -> Option<Subscription> {
        self.position(text).map(|at| self.list.swap_remove(at))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Subscription> {
        self.list.iter()
    }

    /// Whether any subscription is one of this group.
    pub(crate) fn has_share(&self, key: &GroupKey) -> bool {
        self.list
            .iter()
            .any(|entry| entry.group.as_ref() == Some(key))
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    fn position(&self, text: &str) -> Option<usize> {
        self.list.iter().position(|entry| entry.text == text)
    }
}

#[cfg(test)]
mod tests {
    use certs::Role;

    use super::*;

    fn observer() -> Identity {
        Identity {
            name: "eye".parse().unwrap(),
            role: Role::Observer,
        }
    }

    fn request(filter: &str) -> Request<'_> {
        Request {
            filter,
            qos: Qos::Two,
            no_local: false,
            retain_handling: 0,
        }
    }

    #[test]
    fn the_same_text_replaces_and_quality_two_becomes_one() {
        let mut subscriptions = Subscriptions::default();
        let added = subscriptions.add(&observer(), &request("#")).unwrap();
        assert_eq!((added.qos, added.wants_retained), (Qos::One, true));
        let again = Request {
            qos: Qos::Zero,
            retain_handling: 1,
            ..request("#")
        };
        let added = subscriptions.add(&observer(), &again).unwrap();
        assert_eq!((added.qos, added.wants_retained), (Qos::Zero, false));
        assert_eq!(subscriptions.iter().count(), 1);
        assert!(subscriptions.remove("#").is_some());
        assert!(subscriptions.remove("#").is_none() && subscriptions.is_empty());
    }

    #[test]
    fn shared_ones_get_nothing_retained() {
        let mut subscriptions = Subscriptions::default();
        let shared = request("$share/g/tl/v1/+/up/#");
        let added = subscriptions.add(&observer(), &shared).unwrap();
        let key = added.group.clone().unwrap();
        assert!(!added.wants_retained);
        // Another text for the same thing.
        let same = request("$share/g/tl/v1/+/up/+");
        assert!(subscriptions.add(&observer(), &same).is_ok());
        assert!(subscriptions.remove(shared.filter).is_some());
        assert!(subscriptions.has_share(&key));
        assert!(subscriptions.remove(same.filter).is_some());
        assert!(!subscriptions.has_share(&key));
    }

    #[test]
    fn subscriptions_are_bounded() {
        let mut subscriptions = Subscriptions::default();
        for number in 0..=SUBSCRIPTIONS_MAX {
            let text = format!("tl/v1/d{number}/#");
            let added = subscriptions.add(&observer(), &request(&text));
            assert_eq!(added.is_ok(), number < SUBSCRIPTIONS_MAX, "{number}");
        }
        // One that is there already may still change.
        assert!(
            subscriptions
                .add(&observer(), &request("tl/v1/d0/#"))
                .is_ok()
        );
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        let mut subscriptions = Subscriptions::default();
        let mut refusal = |request: &Request<'_>| subscriptions.add(&observer(), request).err();
        assert_eq!(refusal(&request("a#")), Some(Refusal::Filter));
        let no_local = Request {
            no_local: true,
            ..request("#")
        };
        assert_eq!(refusal(&no_local), Some(Refusal::Option));
    }
}
