//! Standbys of PostgreSQL: whether what is committed is also theirs, so that nothing acknowledged is lost when one of them is
//! promoted.

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Executor as _, Row as _};

use super::Cockroach;
use super::dialect::{self, Dialect, Purpose};
use super::failed::Budget;
use super::migrate::LOOK_BUDGET;

/// Has commits wait for disk and synchronous standbys where the database or the user is set to less; `remote_apply` is more.
const SYNCHRONOUS: &str = "SELECT set_config('synchronous_commit', 'on', false) \
     WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')";

/// Standbys that no commit waits for. Who may not see how a standby follows sees that there is one, and whether commits wait
/// for any. What makes a backup, and subscribers, are none.
const STANDBYS: &str = "SELECT count(*), count(*) FILTER (WHERE r.sync_state = 'async' \
         OR (r.sync_state IS NULL AND current_setting('synchronous_standby_names') = '')), \
         current_setting('synchronous_commit') \
     FROM pg_stat_replication AS r WHERE r.state IS DISTINCT FROM 'backup' \
         AND NOT EXISTS (SELECT 1 FROM pg_replication_slots AS s \
             WHERE s.active_pid = r.pid AND s.slot_type = 'logical')";

/// How a primary's standbys follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standbys {
    all: i64,
    asynchronous: i64,
    /// What the connection's commits wait for, in PostgreSQL's words.
    synchronous_commit: String,
}

/// Unless the operator's options say what commits wait for.
pub(super) async fn commit_synchronously(
    connection: &mut PgConnection,
    options: &PgConnectOptions,
) -> Result<(), sqlx::Error> {
    let chosen = options.get_options().unwrap_or_default();
    if !chosen.contains("synchronous_commit") {
        connection.execute(SYNCHRONOUS).await?;
    }
    Ok(())
}

impl Standbys {
    async fn of(connection: &mut PgConnection) -> Result<Option<Self>, sqlx::Error> {
        if dialect::dialect(connection).await? == Dialect::CockroachDb {
            return Ok(None);
        }
        let row = connection.fetch_one(STANDBYS).await?;
        Ok(Some(Self {
            all: row.try_get(0)?,
            asynchronous: row.try_get(1)?,
            synchronous_commit: row.try_get(2)?,
        }))
    }

    /// What somebody should know before one of them is promoted.
    fn warning(&self) -> Option<&'static str> {
        match self.synchronous_commit.as_str() {
            "off" | "local" if self.all > 0 => Some(
                "commits wait for no standby: readings that were acknowledged are lost when one is promoted",
            ),
            "off" => Some(
                "commits do not wait for the disk: a crash loses readings that were acknowledged",
            ),
            _ if self.asynchronous > 0 => Some(
                "a standby is asynchronous: readings that were acknowledged last are lost when it is promoted",
            ),
            _ => None,
        }
    }
}

impl Cockroach {
    /// Logs what may be lost in a failover. That is known for the node that answers now.
    pub(super) async fn warn_of_standbys(&self) {
        let standbys = run!(
            self,
            &mut Budget::new(LOOK_BUDGET),
            Purpose::Write,
            |connection| Standbys::of(connection).await
        );
        match standbys {
            Ok(Some(standbys)) => {
                if let Some(warning) = standbys.warning() {
                    let Standbys {
                        all,
                        asynchronous,
                        synchronous_commit,
                    } = &standbys;
                    tracing::warn!(
                        standbys = all,
                        asynchronous,
                        synchronous_commit,
                        "{warning}"
                    );
                }
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "nothing is known of standbys"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Readers;
    use super::*;

    async fn of(url: &str) -> Standbys {
        let nodes = super::super::Nodes::parse([url]).unwrap();
        let database = Cockroach::new(&super::super::Database::new(nodes));
        let lease = database.cluster.lease_for(Purpose::Write, Readers::Bridge);
        let mut lease = lease.await.unwrap();
        Standbys::of(&mut lease.connection).await.unwrap().unwrap()
    }

    #[test]
    fn commits_are_synchronous_unless_the_url_says_otherwise() {
        testkit::database::postgres(|fixture| async move {
            let url = fixture.url.clone().unwrap();
            let set = async |to: &str| {
                let sql = "DO $$ BEGIN EXECUTE format( \
                     'ALTER DATABASE %I SET synchronous_commit = VALUE', current_database()); END $$";
                fixture.sql(&sql.replace("VALUE", to)).await;
            };
            for (setting, found) in [
                ("off", "on"),
                ("remote_write", "on"),
                ("remote_apply", "remote_apply"),
            ] {
                set(setting).await;
                assert_eq!(of(&url).await.synchronous_commit, found, "{setting}");
                let chosen = format!("{url}?options[synchronous_commit]=local");
                assert_eq!(of(&chosen).await.synchronous_commit, "local");
            }
            // The tests' own replica.
            let standbys = of(&url).await;
            assert!(standbys.asynchronous >= 1, "{standbys:?}");
            assert!(standbys.warning().unwrap().contains("asynchronous"));
        });
    }

    #[test]
    fn what_a_failover_would_lose_is_said() {
        let of = |all, asynchronous, synchronous_commit: &str| {
            let synchronous_commit = synchronous_commit.to_owned();
            let standbys = Standbys {
                all,
                asynchronous,
                synchronous_commit,
            };
            standbys.warning()
        };
        assert_eq!(of(0, 0, "on"), None);
        assert_eq!(of(2, 0, "on"), None);
        assert_eq!(of(0, 0, "local"), None);
        assert!(of(2, 1, "on").unwrap().contains("asynchronous"));
        assert!(of(1, 0, "local").unwrap().contains("no standby"));
        assert!(of(0, 0, "off").unwrap().contains("disk"));
    }
}
