//! Who of a group that shares a subscription is served by which shards. The core is pure.
//!
//! A shard belongs to one member, as a partition belongs to one consumer of a group. Members
//! that come and go move as few shards as balance allows. A shard on its way to a new owner is
//! served by the old one until the new one has opened it: the two may both hear a message for a
//! moment, but none falls in between.
//!
//! ```text
//! unowned ──join──► owned, not open ──confirm──► owned and open ──rebalance──► owned by another,
//!    ▲                                                 ▲                        open at the old
//!    └──────────────── last member leaves              └───────confirm──────────────┘
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use certs::Role;
use daemon::lock;
use tokio::sync::Notify;

use crate::filter::Filter;

/// A connection, by its number.
pub(crate) type Member = u64;

/// What makes two subscriptions one shared subscription. Roles are apart: an observer must not
/// take messages away from the bridges.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct GroupKey {
    pub(crate) role: Role,
    pub(crate) group: String,
    pub(crate) filter: Filter,
}

/// One group: its members, and who owns which shard.
#[derive(Debug)]
struct Group {
    shards: Vec<Shard>,
    members: BTreeMap<Member, Arc<Notify>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Shard {
    /// Who is to serve it.
    owner: Option<Member>,
    /// Who has it open: the owner, or the one before.
    open: Option<Member>,
}

/// All groups of a broker.
#[derive(Debug)]
pub(crate) struct Shares {
    shards: usize,
    groups: Mutex<HashMap<GroupKey, Group>>,
}

impl Shares {
    pub(crate) fn new(shards: usize) -> Self {
        Self {
            shards,
            groups: Mutex::default(),
        }
    }

    /// Adds a member; `changed` is notified whenever what it serves changes later.
    pub(crate) fn join(&self, key: &GroupKey, member: Member, changed: &Arc<Notify>) {
        let mut groups = lock(&self.groups);
        let group = groups
            .entry(key.clone())
            .or_insert_with(|| Group::new(self.shards));
        group.join(member, changed);
        group.notify();
    }

    /// Takes a member out.
    pub(crate) fn leave(&self, key: &GroupKey, member: Member) {
        let mut groups = lock(&self.groups);
        let Some(group) = groups.get_mut(key) else {
            return;
        };
        group.leave(member);
        if group.members.is_empty() {
            groups.remove(key);
        } else {
            group.notify();
        }
    }

    /// The shards that a member serves now, in ascending order.
    pub(crate) fn served(&self, key: &GroupKey, member: Member) -> Vec<usize> {
        lock(&self.groups)
            .get(key)
            .map_or_else(Vec::new, |group| group.served(member))
    }

    /// A member has opened these shards: whoever served them before may let go of them.
    pub(crate) fn confirm(&self, key: &GroupKey, member: Member, opened: &[usize]) {
        if let Some(group) = lock(&self.groups).get_mut(key)
            && group.confirm(member, opened)
        {
            group.notify();
        }
    }
}

impl Group {
    fn new(shards: usize) -> Self {
        Self {
            shards: vec![Shard::default(); shards],
            members: BTreeMap::new(),
        }
    }

    fn notify(&self) {
        for changed in self.members.values() {
            changed.notify_one();
        }
    }

    fn join(&mut self, member: Member, changed: &Arc<Notify>) {
        self.members.insert(member, Arc::clone(changed));
        self.balance();
    }

    fn leave(&mut self, member: Member) {
        self.members.remove(&member);
        for shard in &mut self.shards {
            if shard.open == Some(member) {
                shard.open = None;
            }
            if shard.owner == Some(member) {
                // The one that has it open still keeps it, if there is one.
                shard.owner = shard.open;
            }
        }
        self.balance();
    }

    fn served(&self, member: Member) -> Vec<usize> {
        let serves = |shard: &Shard| shard.owner == Some(member) || shard.open == Some(member);
        (0..self.shards.len())
            .filter(|at| serves(&self.shards[*at]))
            .collect()
    }

    /// Returns whether anything changed for others.
    fn confirm(&mut self, member: Member, opened: &[usize]) -> bool {
        let mut changed = false;
        for at in opened {
            if let Some(shard) = self.shards.get_mut(*at)
                && shard.owner == Some(member)
                && shard.open != Some(member)
            {
                changed |= shard.open.is_some();
                shard.open = Some(member);
            }
        }
        changed
    }

    /// Gives away what nobody owns, then evens out, one shard at a time.
    fn balance(&mut self) {
        let mut loads: BTreeMap<Member, usize> =
            self.members.keys().map(|member| (*member, 0)).collect();
        for owner in self.shards.iter().filter_map(|shard| shard.owner) {
            *loads.entry(owner).or_default() += 1;
        }
        for shard in &mut self.shards {
            if shard.owner.is_none()
                && let Some((least, load)) = loads.iter_mut().min_by_key(|(_, load)| **load)
            {
                shard.owner = Some(*least);
                *load += 1;
            }
        }
        while let (Some((&least, &low)), Some((&most, &high))) = (
            loads.iter().min_by_key(|(_, load)| **load),
            loads.iter().max_by_key(|(_, load)| **load),
        ) && high > low + 1
        {
            // Back to the one that has it open still, if there is such a one: nothing moves.
            let of_most = |shard: &&mut Shard| shard.owner == Some(most);
            let moving = self
                .shards
                .iter_mut()
                .filter(of_most)
                .max_by_key(|shard| shard.open == Some(least));
            let Some(shard) = moving else {
                return;
            };
            shard.owner = Some(least);
            loads.insert(most, high - 1);
            loads.insert(least, low + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn owners(group: &Group) -> Vec<Option<Member>> {
        group.shards.iter().map(|shard| shard.owner).collect()
    }

    fn join(group: &mut Group, member: Member) {
        group.join(member, &Arc::default());
    }

    fn confirm_all(group: &mut Group, member: Member) {
        let served = group.served(member);
        group.confirm(member, &served);
    }

    #[test]
    fn a_second_member_takes_half_and_gives_it_back() {
        let mut group = Group::new(4);
        join(&mut group, 1);
        confirm_all(&mut group, 1);
        assert_eq!(group.served(1), [0, 1, 2, 3]);

        join(&mut group, 2);
        // Until the new one has opened its half, the old one serves everything.
        assert_eq!(group.served(1), [0, 1, 2, 3]);
        assert_eq!(group.served(2).len(), 2);
        confirm_all(&mut group, 2);
        assert_eq!(group.served(1).len(), 2);

        group.leave(1);
        assert_eq!(group.served(2), [0, 1, 2, 3]);
        group.leave(2);
        assert_eq!(owners(&group), [None; 4]);
    }

    #[test]
    fn a_newcomer_that_leaves_before_it_opened_anything_moves_nothing() {
        let mut group = Group::new(4);
        join(&mut group, 1);
        confirm_all(&mut group, 1);
        join(&mut group, 2);
        group.leave(2);
        assert_eq!(owners(&group), [Some(1); 4]);
        assert_eq!(group.served(1), [0, 1, 2, 3]);
    }

    #[test]
    fn what_was_not_opened_is_not_confirmed() {
        let mut group = Group::new(2);
        join(&mut group, 1);
        group.confirm(1, &[0, 1]);
        join(&mut group, 2);
        let moved = group.served(2)[0];
        assert!(!group.confirm(2, &[1 - moved]));
        assert_eq!(group.served(1), [0, 1]);
        assert!(group.confirm(2, &[moved]));
        assert_eq!(group.served(1), [1 - moved]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Join(Member),
        Leave(Member),
        Confirm(Member),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..6u64).prop_map(Step::Join),
            (0..6u64).prop_map(Step::Leave),
            (0..6u64).prop_map(Step::Confirm),
        ]
    }

    proptest! {
        #[test]
        fn every_shard_has_one_owner_and_loads_are_even(count in 1..20usize, steps in prop::collection::vec(step(), 0..60)) {
            let mut group = Group::new(count);
            let mut members = BTreeSet::new();
            for step in steps {
                let before: Vec<Shard> = group.shards.clone();
                let mut left = None;
                match step {
                    Step::Join(member) => {
                        join(&mut group, member);
                        members.insert(member);
                    }
                    Step::Leave(member) => {
                        group.leave(member);
                        members.remove(&member);
                        left = Some(member);
                    }
                    Step::Confirm(member) => confirm_all(&mut group, member),
                }
                for (shard, before) in group.shards.iter().zip(&before) {
                    prop_assert_eq!(shard.owner.is_some(), !members.is_empty());
                    for member in shard.owner.iter().chain(&shard.open) {
                        prop_assert!(members.contains(member), "{} is gone", member);
                    }
                    // What was open stays open, unless who had it open left.
                    prop_assert!(before.open.is_none() || before.open == left || shard.open.is_some());
                }
                let loads: Vec<usize> = members
                    .iter()
                    .map(|member| owners(&group).iter().filter(|o| **o == Some(*member)).count())
                    .collect();
                let (low, high) = (loads.iter().min(), loads.iter().max());
                prop_assert!(low.zip(high).is_none_or(|(low, high)| high - low <= 1), "{:?}", loads);
                let served: BTreeSet<usize> = members.iter().flat_map(|m| group.served(*m)).collect();
                prop_assert!(members.is_empty() || served.len() == count);
            }
        }
    }
}
