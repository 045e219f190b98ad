//! Callers of this machine, told from pages in its browser that another site has made.

use axum::http::{HeaderMap, HeaderName, header};
use daemon::http::names_this_machine;

use super::Problem;

/// The caller must have reached us by a name of this machine, which no site of another name that
/// was pointed here has; and a page that sent the request must be one of ours.
pub(super) fn check(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or(""));
    let host = text(header::HOST);
    if host.is_some_and(|host| !names_this_machine(host)) {
        return Err(Problem::forbidden(
            "without keys, requests are taken by a name of this machine alone: call it as \
             127.0.0.1, or let [auth] keys name a folder of keys",
        ));
    }
    let is_ours = text(header::ORIGIN).is_none_or(|origin| {
        let from = origin.split_once("://").map(|(_, authority)| authority);
        from.is_some() && from == host
    });
    match is_ours {
        true => Ok(()),
        false => Err(Problem::forbidden(
            "without keys, requests of other sites' pages are not taken",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_sites_are_turned_away() {
        let taken = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            check(&headers).is_ok()
        };
        assert!(taken("127.0.0.1:8080", None));
        assert!(taken("127.0.0.1:8080", Some("http://127.0.0.1:8080")));
        assert!(!taken("127.0.0.1:8080", Some("https://example.com")));
        assert!(!taken("127.0.0.1:8080", Some("http://127.0.0.1:3000")));
        assert!(!taken("127.0.0.1:8080", Some("null")));
        assert!(!taken("example.com", None));
    }
}
