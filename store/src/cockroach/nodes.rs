//! Where the nodes of one database are: read from URLs, and named without what is secret in them.

use std::fmt;
use std::str::FromStr as _;

use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;

use crate::StoreError;

/// Addresses of the nodes of one database, with what is needed to connect.
#[derive(Clone)]
pub struct Nodes(pub(super) Vec<PgConnectOptions>);

impl Nodes {
    /// Reads one URL a node; a URL may also name several hosts, separated by commas.
    ///
    /// # Errors
    /// [`StoreError::Settings`] names the part that cannot be used.
    pub fn parse<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<Self, StoreError> {
        let mut nodes = Vec::new();
        for url in urls {
            for url in each_host(url) {
                let options = PgConnectOptions::from_str(&url).map_err(settings)?;
                nodes.push(options.disable_statement_logging());
            }
        }
        if nodes.is_empty() {
            return Err(StoreError::Settings {
                reason: "no node is named".to_owned(),
            });
        }
        Ok(Self(nodes))
    }
}

fn settings(error: sqlx::Error) -> StoreError {
    StoreError::Settings {
        reason: error.to_string(),
    }
}

/// One URL for each host of `url`.
fn each_host(url: &str) -> Vec<String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return vec![url.to_owned()];
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), authority),
    };
    hosts
        .split(',')
        .map(|host| format!("{scheme}://{user}{host}{path}"))
        .collect()
}

impl fmt::Display for Nodes {
    /// Hosts, ports and the database's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, node) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{}", address(node))?;
        }
        match self.0.first().and_then(PgConnectOptions::get_database) {
            Some(database) => write!(f, "/{database}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where one node is, for messages.
pub(super) fn address(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_with_several_hosts_is_several_nodes() {
        let nodes = Nodes::parse([
            "postgres://root:secret@a:26257,b:26258/fleet?sslmode=disable",
            "postgres://c/fleet",
        ])
        .unwrap();
        assert_eq!(nodes.to_string(), "a:26257,b:26258,c:5432/fleet");
        assert!(!format!("{nodes:?}").contains("secret"));
    }

    #[test]
    fn a_bad_url_is_refused_without_its_password() {
        for url in [
            "postgres://u:secret@h:port/db",
            "postgres://u:secret@[::1/db",
        ] {
            let error = Nodes::parse([url]).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
