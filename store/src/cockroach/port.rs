//! The port of the statements that both databases share, on a connection of a cluster.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use schema::DeviceId;
use schema::time::ReceivedAt;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Column as _, Connection as _, Executor as _, Postgres, Row as _, TypeInfo as _};

use super::super::StoreError;
use super::super::error::Source;
use super::super::ledger::plan::OBSERVED_AT_MIN;
use super::super::sql::{Access, Broken, Cell, Database, Port, Row, See, Work, int8, unreadable};
use super::Cockroach;
use super::arguments::{Columns, Micros};
use super::dialect::Purpose;
use super::query::TO_MAX;

const FORGET_REPORTS: &str = "DELETE FROM reported_config AS r \
     USING unnest($1::TEXT[], $2::TIMESTAMPTZ[]) AS n (device_id, reported_at) \
     WHERE r.device_id = n.device_id AND r.reported_at <= n.reported_at";

/// Statements on a connection, within a transaction or each for itself.
pub(super) struct Statements<'c> {
    connection: &'c mut PgConnection,
    is_again: bool,
}

impl<'c> Statements<'c> {
    /// Those of a transaction that is under way.
    pub(super) const fn within(connection: &'c mut PgConnection) -> Self {
        Self {
            connection,
            is_again: false,
        }
    }
}

#[async_trait]
impl Port for Statements<'_> {
    async fn execute(&mut self, sql: &'static str, cells: Vec<Cell>) -> Result<u64, Broken> {
        let done = self.connection.execute(bound(sql, cells)).await;
        Ok(done.map_err(broken)?.rows_affected())
    }

    async fn query(
        &mut self,
        sql: &'static str,
        cells: Vec<Cell>,
        see: &mut See<'_>,
    ) -> Result<(), Broken> {
        let mut rows = self.connection.fetch(bound(sql, cells));
        while let Some(row) = rows.try_next().await.map_err(broken)? {
            see(&row)?;
        }
        Ok(())
    }

    async fn forget_reports(&mut self, heard: &[(DeviceId, ReceivedAt)]) -> Result<(), Broken> {
        let arguments = Columns::default()
            .array(heard, |(device, _)| device.as_str())
            .and_then(|columns| columns.array(heard, |(_, at)| within(*at)))
            .map_err(broken)?;
        let forget = sqlx::query_with(FORGET_REPORTS, arguments.done());
        self.connection.execute(forget).await.map_err(broken)?;
        Ok(())
    }

    fn is_again(&self) -> bool {
        self.is_again
    }

    fn leaves_out_odd_rows(&self) -> bool {
        false
    }
}

#[async_trait]
impl Database for Cockroach {
    async fn work<T: Send + 'static>(
        &self,
        access: Access,
        work: Work<T>,
    ) -> Result<T, StoreError> {
        let purpose = match access {
            Access::Read => Purpose::Read,
            Access::ReadStale => Purpose::ReadStale,
            Access::Write | Access::Transaction => Purpose::Write,
        };
        let was_tried = AtomicBool::new(false);
        run!(self, &mut self.budget(), purpose, |connection| {
            let is_again = was_tried.swap(true, Ordering::Relaxed);
            once(connection, access, &work, is_again).await
        })?
    }

    fn writes_together(&self) -> usize {
        1
    }

    fn cutoff(&self) -> ReceivedAt {
        self.silence.cutoff(&self.clock)
    }

    fn now(&self) -> ReceivedAt {
        self.clock.now()
    }
}

/// One attempt: an error of the database is the attempt's, any other is the work's.
async fn once<T>(
    connection: &mut PgConnection,
    access: Access,
    work: &Work<T>,
    is_again: bool,
) -> Result<Result<T, StoreError>, sqlx::Error> {
    if access != Access::Transaction {
        let mut statements = Statements {
            connection,
            is_again,
        };
        return judged(work(&mut statements).await);
    }
    let mut transaction = connection.begin().await?;
    let mut statements = Statements {
        connection: &mut transaction,
        is_again,
    };
    let done = judged(work(&mut statements).await)?;
    match done {
        Ok(_) => transaction.commit().await?,
        // Not when it is used next: until then it would hold its locks.
        Err(_) => transaction.rollback().await?,
    }
    Ok(done)
}

fn judged<T>(done: Result<T, Broken>) -> Result<Result<T, StoreError>, sqlx::Error> {
    match done {
        Ok(value) => Ok(Ok(value)),
        Err(Broken::Store(error)) => Ok(Err(error)),
        Err(Broken::Database(error)) => Err(of_sqlx(error)),
    }
}

fn of_sqlx(error: Source) -> sqlx::Error {
    match error.downcast::<sqlx::Error>() {
        Ok(error) => *error,
        Err(other) => sqlx::Error::Decode(other),
    }
}

/// Why what is done within a transaction ended, as its attempt's error.
pub(super) fn ended(broken: Broken) -> sqlx::Error {
    match broken {
        Broken::Database(error) => of_sqlx(error),
        Broken::Store(error) => sqlx::Error::Decode(error.into()),
    }
}

fn broken(error: sqlx::Error) -> Broken {
    Broken::Database(error.into())
}

fn bound(sql: &'static str, cells: Vec<Cell>) -> Query<'static, Postgres, PgArguments> {
    cells
        .into_iter()
        .fold(sqlx::query(sql), |query, cell| match cell {
            Cell::Bool(truth) => query.bind(truth),
            Cell::Int(number) => query.bind(number),
            Cell::Float(number) => query.bind(number),
            Cell::Text(text) => query.bind(text),
            Cell::Time(at) => query.bind(at.map(within)),
            Cell::Limit(rows) => query.bind(int8(rows as u64)),
            Cell::Texts(texts) => query.bind(texts),
        })
}

/// A time that somebody asks for may be any number.
fn within(at: ReceivedAt) -> Micros {
    Micros(at.micros().clamp(OBSERVED_AT_MIN.micros(), TO_MAX.micros()))
}

impl Row for PgRow {
    fn maybe_int(&self, at: usize) -> Result<Option<i64>, StoreError> {
        let column = self.try_column(at);
        let found = column.and_then(|column| match column.type_info().name() {
            "INT2" => self
                .try_get::<Option<i16>, _>(at)
                .map(|it| it.map(i64::from)),
            "INT4" => self
                .try_get::<Option<i32>, _>(at)
                .map(|it| it.map(i64::from)),
            _ => self.try_get(at),
        });
        found.map_err(|error| unreadable("number", error))
    }

    fn maybe_text(&self, at: usize) -> Result<Option<String>, StoreError> {
        self.try_get(at).map_err(|error| unreadable("text", error))
    }

    fn maybe_float(&self, at: usize) -> Result<Option<f64>, StoreError> {
        self.try_get(at)
            .map_err(|error| unreadable("number", error))
    }

    fn maybe_time(&self, at: usize) -> Result<Option<ReceivedAt>, StoreError> {
        let found = self.try_get::<Option<Micros>, _>(at);
        let found = found.map_err(|error| unreadable("time", error))?;
        Ok(found.map(|micros| ReceivedAt::from_micros(micros.0)))
    }

    fn maybe_bool(&self, at: usize) -> Result<Option<bool>, StoreError> {
        self.try_get(at).map_err(|error| unreadable("truth", error))
    }

    fn bytes(&self, at: usize) -> Result<Vec<u8>, StoreError> {
        self.try_get(at).map_err(|error| unreadable("bytes", error))
    }
}
