//! Paths and query strings of the API, with whatever a person typed in them.

use std::fmt::{self, Write};

use clap::ValueEnum;
use schema::DeviceId;

/// A path with its query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    path: String,
    query: Vec<(&'static str, String)>,
}

/// What belongs to a device.
pub(crate) fn device(device: &DeviceId, below: &str) -> Path {
    Path::new(&format!("devices/{device}{below}"))
}

impl Path {
    /// A path below `/api/v1/`.
    pub(crate) fn new(below: &str) -> Self {
        Self::whole(&format!("/api/v1/{below}"))
    }

    /// A path beside them.
    pub(crate) fn whole(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            query: Vec::new(),
        }
    }

    /// One segment more: whatever it holds stays one segment.
    pub(crate) fn segment(mut self, text: &str) -> Self {
        self.path.push('/');
        for byte in text.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => {
                    self.path.push(char::from(byte));
                }
                // Two of them alone would be taken away by whatever stands between.
                b'.' if !text.trim_matches('.').is_empty() => self.path.push('.'),
                byte => {
                    let _ = write!(self.path, "%{byte:02X}");
                }
            }
        }
        self
    }

    /// The rest of the path.
    pub(crate) fn then(mut self, rest: &str) -> Self {
        self.path.push_str(rest);
        self
    }

    /// One parameter more.
    pub(crate) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.query.push((name, value.to_string()));
        self
    }

    /// One parameter more, if there is a value for it.
    pub(crate) fn with_some(self, name: &'static str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// One parameter more, by the name that its value has on the command line.
    pub(crate) fn with_typed(self, name: &'static str, value: Option<impl ValueEnum>) -> Self {
        let value = value.and_then(|value| value.to_possible_value());
        self.with_some(name, value.as_ref().map(|value| value.get_name()))
    }

    /// A parameter's value.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Sets a parameter, in place of the one that has its name.
    pub(crate) fn replace(&mut self, name: &'static str, value: String) {
        match self.query.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.query.push((name, value)),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.path)?;
        if self.query.is_empty() {
            return Ok(());
        }
        let query = serde_urlencoded::to_string(&self.query).map_err(|_| fmt::Error)?;
        write!(out, "?{query}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_and_parameters_cannot_change_the_path() {
        let path = Path::new("groups")
            .segment("press / hall?1")
            .then("/config");
        assert_eq!(
            path.with("key", "a&b=c d").to_string(),
            "/api/v1/groups/press%20%2F%20hall%3F1/config?key=a%26b%3Dc+d"
        );
        assert_eq!(
            Path::new("groups").segment("..").to_string(),
            "/api/v1/groups/%2E%2E"
        );
        assert_eq!(Path::new("x").segment("a.b").to_string(), "/api/v1/x/a.b");
    }

    #[test]
    fn a_parameter_is_replaced_or_added() {
        let mut path = Path::new("devices")
            .with("label", "a=1")
            .with("label", "b=2");
        path.replace("after", "x".to_owned());
        path.replace("after", "y".to_owned());
        assert_eq!(
            path.to_string(),
            "/api/v1/devices?label=a%3D1&label=b%3D2&after=y"
        );
    }
}
