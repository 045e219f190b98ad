//! A database of one's own on a PostgreSQL or CockroachDB server, for one run.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// A database that nobody else uses. [`Self::drop_it`] removes it.
#[derive(Debug)]
pub struct Scratch {
    server: String,
    name: String,
    url: String,
}

impl Scratch {
    /// Makes one on the server that this URL reaches, whatever database it names.
    ///
    /// # Errors
    /// When the server cannot be reached or does not let us.
    pub async fn create(server: &str) -> sqlx::Result<Self> {
        let name = format!("tideline_scratch_{:016x}", rand::random::<u64>());
        let mut connection = PgConnection::connect(server).await?;
        let create = format!("CREATE DATABASE {name}");
        connection.execute(AssertSqlSafe(create)).await?;
        connection.close().await?;
        Ok(Self {
            server: server.to_owned(),
            url: with_database(server, &name),
            name,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Removes it, with whoever is still connected to it.
    ///
    /// # Errors
    /// When the server cannot be reached or does not let us.
    pub async fn drop_it(self) -> sqlx::Result<()> {
        let Self { server, name, .. } = self;
        let mut connection = PgConnection::connect(&server).await?;
        let force = format!("DROP DATABASE {name} WITH (FORCE)");
        if connection.execute(AssertSqlSafe(force)).await.is_err() {
            let cascade = format!("DROP DATABASE {name} CASCADE");
            connection.execute(AssertSqlSafe(cascade)).await?;
        }
        connection.close().await
    }
}

/// A URL with another database.
fn with_database(url: &str, name: &str) -> String {
    let (url, query) = match url.split_once('?') {
        Some((url, query)) => (url, format!("?{query}")),
        None => (url, String::new()),
    };
    let after_scheme = url.find("://").map_or(0, |at| at + 3);
    let server = match url[after_scheme..].find('/') {
        Some(at) => &url[..after_scheme + at],
        None => url,
    };
    format!("{server}/{name}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_database_of_a_url_changes() {
        for (before, after) in [
            ("postgres://a@h:1/postgres", "postgres://a@h:1/x"),
            ("postgres://a@h:1", "postgres://a@h:1/x"),
            (
                "postgres://h/p?sslmode=disable",
                "postgres://h/x?sslmode=disable",
            ),
            ("postgres://h?a=/b", "postgres://h/x?a=/b"),
        ] {
            assert_eq!(with_database(before, "x"), after);
        }
    }
}
