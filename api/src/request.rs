//! A request, as a client sends it: what an endpoint's path names, its query and its body, as bytes.

use std::fmt::{self, Write as _};

use serde::Serialize;
use serde_json::Value;

use crate::{Endpoint, Limit, Listing, Paged};

/// A request of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<E: Endpoint> {
    /// What its path names.
    pub path: E::Path,
    /// What stands behind the question mark.
    pub query: E::Query,
    /// What is sent, if anything is taken.
    pub body: Option<E::Body>,
}

impl<E: Endpoint> Request<E> {
    /// A request without query and body.
    pub fn new(path: E::Path) -> Self
    where
        E::Query: Default,
    {
        Self {
            path,
            query: E::Query::default(),
            body: None,
        }
    }

    /// With this query.
    #[must_use]
    pub fn query(self, query: E::Query) -> Self {
        Self { query, ..self }
    }

    /// With this body.
    #[must_use]
    pub fn body(self, body: E::Body) -> Self {
        Self {
            body: Some(body),
            ..self
        }
    }

    /// One page of a list: at most so many entries, behind where another page ended.
    pub fn page(&mut self, limit: Limit, after: Option<String>)
    where
        E::Query: Paged,
        E::Answer: Listing,
    {
        self.query.page(limit, after);
    }

    /// Path and query, as they stand in a request's first line: whatever the values hold, they stay
    /// one segment, and one parameter, each.
    ///
    /// # Errors
    ///
    /// A value is neither text, number, truth value nor a list of them: the endpoint's declaration is wrong.
    pub fn target(&self) -> Result<String, RequestError> {
        let mut target = String::from(E::PATH);
        for (name, value) in pairs(&self.path)? {
            target = target.replace(&format!("{{{name}}}"), &Segment(&value).to_string());
        }
        let query = pairs(&self.query)?;
        if !query.is_empty() {
            let query = serde_urlencoded::to_string(&query).map_err(|_| RequestError)?;
            target.push('?');
            target.push_str(&query);
        }
        Ok(target)
    }

    /// The body as JSON.
    ///
    /// # Errors
    ///
    /// It cannot be written as JSON: the endpoint's declaration is wrong.
    pub fn json(&self) -> Result<Option<Vec<u8>>, RequestError> {
        let body = self.body.as_ref().map(serde_json::to_vec);
        body.transpose().map_err(|_| RequestError)
    }
}

/// What is to be sent cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request cannot be written")]
pub struct RequestError;

/// Names and values: one pair for each value of a list, none for what is not given.
fn pairs(parameters: &impl Serialize) -> Result<Vec<(String, String)>, RequestError> {
    let Ok(Value::Object(fields)) = serde_json::to_value(parameters) else {
        return Err(RequestError);
    };
    let mut pairs = Vec::with_capacity(fields.len());
    for (name, value) in fields {
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            let text = match value {
                Value::Null => continue,
                Value::String(text) => text,
                Value::Bool(_) | Value::Number(_) => value.to_string(),
                Value::Array(_) | Value::Object(_) => return Err(RequestError),
            };
            pairs.push((name.clone(), text));
        }
    }
    Ok(pairs)
}

/// A text as one segment of a path.
struct Segment<'a>(&'a str);

impl fmt::Display for Segment<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Two dots alone would be taken away by whatever stands between.
        let is_dots = self.0.trim_matches('.').is_empty();
        for byte in self.0.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => {
                    out.write_char(char::from(byte))?;
                }
                b'.' if !is_dots => out.write_char('.')?,
                byte => write!(out, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}
