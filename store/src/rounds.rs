//! Rounds: what one bridge at a time does for all. Whoever begins one has it until it has not been heard of for an
//! interval, by the database's time; the place where it ended stays for whoever goes on.

use std::time::Duration;

use async_trait::async_trait;
use schema::time::ReceivedAt;

use super::StoreError;
use super::sql::{Access, Database, cells};

/// What is done in rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// Devices are asked again for what was skipped.
    Gaps,
    /// What is too old is dropped.
    Retention,
    /// Devices are looked at that are there as far as their last message says.
    Silence,
    /// What is kept aside is counted anew.
    Quotas,
    /// Partitions of the next months are made.
    Partitions,
    /// Hours that are over are given to rollups.
    Rollups,
}

/// The part of a store that lets one bridge at a time do something.
#[async_trait]
pub trait RoundStore: Send + Sync {
    /// Begins a round, unless somebody has begun it or kept its place within `interval`. Returns the place where the
    /// last one ended; empty at the beginning.
    async fn begin_round(
        &self,
        round: Round,
        now: ReceivedAt,
        interval: Duration,
    ) -> Result<Option<String>, StoreError>;

    /// Keeps the place where a round is, and the round for an interval from now.
    async fn keep_round(
        &self,
        round: Round,
        place: &str,
        now: ReceivedAt,
    ) -> Result<(), StoreError>;
}

const BEGIN: &str = "INSERT INTO rounds (name, begun_at, place) VALUES ($1, $2, '') \
     ON CONFLICT (name) DO UPDATE SET begun_at = excluded.begun_at \
     WHERE rounds.begun_at <= $3 RETURNING place";

const KEEP: &str =
    "UPDATE rounds SET place = $2, begun_at = greatest(begun_at, $3) WHERE name = $1";

impl Round {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Gaps => "gaps",
            Self::Retention => "retention",
            Self::Silence => "silence",
            Self::Quotas => "quotas",
            Self::Partitions => "partitions",
            Self::Rollups => "rollups",
        }
    }
}

#[async_trait]
impl<D: Database> RoundStore for D {
    async fn begin_round(
        &self,
        round: Round,
        now: ReceivedAt,
        interval: Duration,
    ) -> Result<Option<String>, StoreError> {
        let cells = cells![round.as_str(), now, now.minus(interval)];
        self.first(Access::Write, BEGIN, cells, |row| row.text(0))
            .await
    }

    async fn keep_round(
        &self,
        round: Round,
        place: &str,
        now: ReceivedAt,
    ) -> Result<(), StoreError> {
        self.execute(KEEP, cells![round.as_str(), place, now])
            .await
            .map(drop)
    }
}
