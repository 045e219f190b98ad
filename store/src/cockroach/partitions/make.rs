//! New partitions: of the months that come, and of whatever times a write has readings.
//!
//! A partition is made beside the others and attached: that waits for nobody who reads or writes, and for nobody else who makes
//! one longer than a moment. Bridges that make the same one after another find it made.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

use super::super::super::StoreError;
use super::super::super::ledger::plan::{Intake, NewRow};
use super::super::super::sqlstate::Verdict;
use super::super::Cockroach;
use super::super::columns::observed;
use super::super::dialect::Purpose;
use super::super::failed::{Budget, Failed};
use super::grid::{Period, ahead, missing};
use super::owner::give;
use super::{Found, bounds, change};

/// One at a time; nobody else is in its way.
const LOCK: &str = "LOCK TABLE ONLY telemetry_data IN SHARE UPDATE EXCLUSIVE MODE";

/// Names that are taken.
const TAKEN: &str = "SELECT c.relname::TEXT FROM pg_class AS c \
     WHERE c.relnamespace = current_schema()::regnamespace AND c.relname LIKE 'telemetry\\_data%'";

/// What came of making partitions.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Made {
    /// So many.
    New(u64),
    /// There were all that were wanted.
    There,
    /// The table is not partitioned by us.
    NotOurs,
}

/// Makes what some times want and is not there, within a transaction that stands beside the table.
pub(super) async fn make(
    connection: &mut PgConnection,
    found: &Found,
    times: &[i64],
) -> Result<Vec<String>, sqlx::Error> {
    let there = bounds(connection).await?;
    let there: Vec<Period> = there.iter().map(|partition| partition.period).collect();
    let wanted = missing(times.iter().copied(), found.now, &there);
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let taken = connection
        .fetch_all(sqlx::query(TAKEN).persistent(false))
        .await?;
    let taken = taken.iter().map(|row| row.try_get(0));
    let mut taken: Vec<String> = taken.collect::<Result<_, _>>()?;
    let mut made = Vec::with_capacity(wanted.len());
    for period in wanted {
        let (name, bounds) = (period.name(&taken), period.bounds());
        let create = format!("CREATE TABLE {name} (LIKE telemetry_data INCLUDING ALL)");
        connection.execute(AssertSqlSafe(create)).await?;
        let attach =
            format!("ALTER TABLE telemetry_data ATTACH PARTITION {name} FOR VALUES {bounds}");
        connection.execute(AssertSqlSafe(attach)).await?;
        give(connection, found, &name).await?;
        taken.push(name.clone());
        made.push(name);
    }
    Ok(made)
}

impl Cockroach {
    /// Makes what this month and the next ones want.
    pub(in super::super) async fn make_ahead(&self) -> Result<u64, StoreError> {
        let mut budget = self.budget();
        loop {
            match self.make_partitions(None).await {
                Ok(Made::New(made)) => return Ok(made),
                Ok(Made::There | Made::NotOurs) => return Ok(0),
                Err(failed) => self.again(&mut budget, failed).await?,
            }
        }
    }

    /// After a write was refused because no partition takes some of its rows, and so wrote nothing: makes what is missing.
    /// The readings are as good as others.
    pub(in super::super) async fn make_room(
        &self,
        intake: &Intake<'_>,
        part: &[NewRow],
        refused: Failed,
        budget: &mut Budget,
    ) -> Result<(), StoreError> {
        let mut times: Vec<i64> = part.iter().map(|row| observed(intake, row).0).collect();
        times.sort_unstable();
        times.dedup();
        loop {
            match self.make_partitions(Some(&times)).await {
                Ok(Made::New(_)) => return Ok(()),
                // Another bridge was quicker.
                Ok(Made::There) => return self.pause(budget).await,
                Ok(Made::NotOurs) => return self.again(budget, refused).await,
                Err(failed) => match failed.verdict {
                    Verdict::Refusal | Verdict::Refused | Verdict::Schema | Verdict::Taken => {
                        return Err(cannot(&refused, failed));
                    }
                    Verdict::Conflict
                    | Verdict::Unknown
                    | Verdict::Elsewhere
                    | Verdict::Overload
                    | Verdict::TooLarge
                    | Verdict::Unforeseen => self.again(budget, failed).await?,
                },
            }
        }
    }

    /// Without times, those of the months that come.
    async fn make_partitions(&self, times: Option<&[i64]>) -> Result<Made, Failed> {
        let mut lease = self.cluster.lease(Purpose::Migrate).await?;
        let made = async {
            let Some((mut transaction, found)) = change(&mut lease.connection, LOCK).await? else {
                return Ok(None);
            };
            let made = match times {
                Some(times) => make(&mut transaction, &found, times).await?,
                None => make(&mut transaction, &found, &ahead(found.now)).await?,
            };
            transaction.commit().await?;
            Ok(Some(made))
        };
        let made = made.await;
        match lease.end(Ok(made)).await? {
            None => Ok(Made::NotOurs),
            Some(made) if made.is_empty() => Ok(Made::There),
            Some(made) => {
                self.partitions.set(None);
                tracing::info!(partitions = made.join(", "), "made partitions of readings");
                Ok(Made::New(made.len() as u64))
            }
        }
    }
}

/// The error of a write that nothing takes, and why nothing that does can be made.
fn cannot(refused: &Failed, failed: Failed) -> StoreError {
    let source = failed.into_error(1, std::time::Duration::ZERO).explained();
    StoreError::Statement {
        sqlstate: refused.sqlstate().unwrap_or_default(),
        source: format!(
            "no partition of telemetry_data takes readings of their times, and none can be made: {source}; \
             run `bridge migrate` as the owner of telemetry_data, or grant the owner's role to the bridge's"
        )
        .into(),
    }
}
