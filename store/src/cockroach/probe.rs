//! Whether the database answers and takes writes, asked on a connection of its own.

use std::time::Duration;

use sqlx::{Executor as _, Row as _};

use super::super::StoreError;
use super::Cockroach;
use super::dialect::Purpose;
use super::failed::{Budget, read_only};

/// Within the patience of who asks: another node may answer.
const BUDGET: Duration = Duration::from_millis(1_500);

impl Cockroach {
    pub(super) async fn probe(&self) -> Result<(), StoreError> {
        run!(
            self,
            &mut Budget::new(BUDGET),
            Purpose::Probe,
            |connection| {
                let row = connection.fetch_one("SHOW transaction_read_only").await?;
                match row.try_get::<String, _>(0)?.as_str() {
                    "on" => Err(read_only()),
                    _ => Ok(()),
                }
            }
        )
    }
}
