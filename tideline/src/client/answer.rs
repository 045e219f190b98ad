//! An answer: as a program reads it, all that the bridge said, and as this one understands it.

use std::ops::Deref;

use daemon::Failure;
use hyper::header::ETAG;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Whole, unreadable};

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answered<T> {
    /// All of it; an entity tag joins it as `etag`.
    pub(crate) raw: Value,
    /// What is known of it.
    pub(crate) body: T,
    /// Names the state that was shown or made, of what has versions.
    pub(crate) tag: Option<String>,
}

impl<T: DeserializeOwned> Answered<T> {
    pub(super) fn of(answer: &Whole) -> Result<Self, Failure> {
        let body = match answer.body.as_ref() {
            b"" => b"null",
            body => body,
        };
        let mut raw: Value = serde_json::from_slice(body).map_err(unreadable)?;
        let body = T::deserialize(&raw).map_err(unreadable)?;
        let tag = answer.header(ETAG.as_str());
        let tag = tag.map(|tag| tag.trim_matches('"').to_owned());
        if let (Some(object), Some(tag)) = (raw.as_object_mut(), &tag) {
            object.insert("etag".to_owned(), tag.as_str().into());
        }
        Ok(Self { raw, body, tag })
    }
}

impl<T> Deref for Answered<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.body
    }
}
