//! The port of the statements that both databases share, on the file.

use std::panic::{AssertUnwindSafe, catch_unwind};

use async_trait::async_trait;
use libsql::Value;
use schema::DeviceId;
use schema::time::ReceivedAt;

use super::super::StoreError;
use super::super::sql::{
    Access, Broken, Cell, Database, Port, Row, See, Work, cells, int8, unreadable,
};
use super::Embedded;
use super::file::{File, ready};

const FORGET_REPORT: &str =
    "DELETE FROM reported_config WHERE device_id = ?1 AND reported_at <= ?2";

/// Statements within what a thread's job does.
pub(super) struct Statements<'f>(pub(super) &'f mut File);

#[async_trait]
impl Port for Statements<'_> {
    async fn execute(&mut self, sql: &'static str, cells: Vec<Cell>) -> Result<u64, Broken> {
        let done = self.0.execute(sql, values(cells));
        Ok(done.map_err(StoreError::from)? as u64)
    }

    async fn query(
        &mut self,
        sql: &'static str,
        cells: Vec<Cell>,
        see: &mut See<'_>,
    ) -> Result<(), Broken> {
        self.0.query(sql, values(cells), |row| see(row))?;
        Ok(())
    }

    async fn forget_reports(&mut self, heard: &[(DeviceId, ReceivedAt)]) -> Result<(), Broken> {
        for (device, at) in heard {
            self.execute(FORGET_REPORT, cells![device, *at]).await?;
        }
        Ok(())
    }

    /// What was written is known: an answer is not lost.
    fn is_again(&self) -> bool {
        false
    }

    /// Nobody but its operator mends a file, and somebody's hand in one row must not keep the others from those who ask.
    fn leaves_out_odd_rows(&self) -> bool {
        true
    }
}

#[async_trait]
impl Database for Embedded {
    async fn work<T: Send + 'static>(
        &self,
        access: Access,
        work: Work<T>,
    ) -> Result<T, StoreError> {
        let run = move |file: &mut File| judged(ready(work(&mut Statements(file))));
        match access {
            Access::Read | Access::ReadStale => self.read(run).await,
            Access::Write | Access::Transaction => self.write(run).await,
        }
    }

    /// All of one call are one commit, and one write to the disk.
    fn writes_together(&self) -> usize {
        usize::MAX
    }

    fn cutoff(&self) -> ReceivedAt {
        self.silence.cutoff(&self.clock)
    }

    fn now(&self) -> ReceivedAt {
        self.clock.now()
    }
}

pub(super) fn judged<T>(done: Result<T, Broken>) -> Result<T, StoreError> {
    done.map_err(|broken| match broken {
        Broken::Store(error) => error,
        Broken::Database(source) => StoreError::Statement {
            sqlstate: String::new(),
            source,
        },
    })
}

fn values(cells: Vec<Cell>) -> Vec<Value> {
    let value = |cell| match cell {
        Cell::Bool(truth) => truth.map(|truth| Value::Integer(i64::from(truth))),
        Cell::Int(number) => number.map(Value::Integer),
        Cell::Float(number) => Some(Value::Real(number)),
        Cell::Text(text) => text.map(Value::Text),
        Cell::Time(at) => at.map(|at| Value::Integer(at.micros())),
        Cell::Limit(rows) => Some(Value::Integer(int8(rows as u64))),
        Cell::Texts(texts) => Some(Value::Text(serde_json::Value::from(texts).to_string())),
    };
    let of = |cell| value(cell).unwrap_or(Value::Null);
    cells.into_iter().map(of).collect()
}

impl Row for libsql::Row {
    fn maybe_int(&self, at: usize) -> Result<Option<i64>, StoreError> {
        let found = self.get::<Option<i64>>(at as i32);
        found.map_err(|error| unreadable("number", error))
    }

    fn maybe_text(&self, at: usize) -> Result<Option<String>, StoreError> {
        // libSQL panics on text that is not UTF-8; that is no more than a row that makes no sense.
        let found = catch_unwind(AssertUnwindSafe(|| self.get::<Option<String>>(at as i32)));
        match found {
            Ok(found) => found.map_err(|error| unreadable("text", error)),
            Err(_) => Err(unreadable("text", "it is not UTF-8")),
        }
    }

    fn maybe_float(&self, at: usize) -> Result<Option<f64>, StoreError> {
        let found = self.get::<Option<f64>>(at as i32);
        found.map_err(|error| unreadable("number", error))
    }

    fn maybe_time(&self, at: usize) -> Result<Option<ReceivedAt>, StoreError> {
        Ok(self.maybe_int(at)?.map(ReceivedAt::from_micros))
    }

    fn maybe_bool(&self, at: usize) -> Result<Option<bool>, StoreError> {
        Ok(self.maybe_int(at)?.map(|number| number != 0))
    }

    fn bytes(&self, at: usize) -> Result<Vec<u8>, StoreError> {
        // What is empty comes back as nothing.
        let found = self.get::<Option<Vec<u8>>>(at as i32);
        let found = found.map_err(|error| unreadable("bytes", error))?;
        Ok(found.unwrap_or_default())
    }
}
