//! An answer: as a program reads it, all that the bridge said; and as this one understands it.

use std::marker::PhantomData;

use daemon::Failure;
use hyper::header::ETAG;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Whole, unreadable};

/// An answer, or an entry of one.
#[derive(Debug, Clone)]
pub(crate) struct Answered<T> {
    /// All of it; an entity tag joins it as `etag`.
    pub(crate) raw: Value,
    /// Names the state that was shown or made, of what has versions.
    pub(crate) tag: Option<String>,
    body: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Answered<T> {
    /// What was said of something.
    pub(super) fn new(raw: Value) -> Self {
        Self {
            raw,
            tag: None,
            body: PhantomData,
        }
    }

    pub(super) fn of(answer: &Whole) -> Result<Self, Failure> {
        let body = match answer.body.as_ref() {
            b"" => b"null",
            body => body,
        };
        let mut raw: Value = serde_json::from_slice(body).map_err(unreadable)?;
        let tag = answer.header(ETAG.as_str());
        let tag = tag.map(|tag| tag.trim_matches('"').to_owned());
        if let (Some(object), Some(tag)) = (raw.as_object_mut(), &tag) {
            object.insert("etag".to_owned(), tag.as_str().into());
        }
        Ok(Self {
            tag,
            ..Self::new(raw)
        })
    }

    /// What is known of it. A failure when it is not what this program knows: of a bridge of another version.
    pub(crate) fn body(&self) -> Result<T, Failure> {
        T::deserialize(&self.raw).map_err(unreadable)
    }
}
