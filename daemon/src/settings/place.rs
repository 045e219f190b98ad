//! Where a setting was written.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::problems::clean;

/// Where a setting was written. Shown without what a terminal would obey.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A line of a file, from 1; 0 is the file as a whole.
    File {
        /// The file, as it was named.
        #[serde(serialize_with = "shown")]
        path: Arc<Path>,
        /// The line.
        line: usize,
    },
    /// A variable of the environment.
    Variable(String),
    /// `--set KEY`.
    Option(String),
}

/// A name that is no text is shown as far as it is.
fn shown<S: Serializer>(path: &Arc<Path>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl Place {
    /// A file as a whole.
    #[must_use]
    pub fn whole(path: &Path) -> Self {
        Self::File {
            path: path.into(),
            line: 0,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |text: &str| clean(text, false);
        match self {
            Self::File { path, line: 0 } => f.write_str(&shown(&path.display().to_string())),
            Self::File { path, line } => {
                write!(f, "{}:{line}", shown(&path.display().to_string()))
            }
            Self::Variable(name) => f.write_str(&shown(name)),
            Self::Option(key) => write!(f, "--set {}", shown(key)),
        }
    }
}

/// Whether a key is `section`, or in it.
#[must_use]
pub fn is_below(key: &str, section: &str) -> bool {
    let rest = key.strip_prefix(section);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Resolves a path from a settings file: relative ones start at the file's own folder.
#[must_use]
pub fn relative_to(origin: &Path, path: &Path) -> PathBuf {
    match origin.parent() {
        Some(folder) if path.is_relative() => folder.join(path),
        _ => path.to_owned(),
    }
}

/// The key of `key` within `path`, as `source.press.interval`.
pub(super) fn join(path: &str, key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let key = match !key.is_empty() && key.bytes().all(is_bare) {
        true => key.to_owned(),
        false => format!("{key:?}"),
    };
    match path {
        "" => key,
        path => format!("{path}.{key}"),
    }
}

/// The key of an element, as `buffer.rule[2]`.
pub(super) fn element(path: &str, at: usize) -> String {
    format!("{path}[{at}]")
}

/// The key around a key: `None` of one at the top.
pub(super) fn parent(key: &str) -> Option<&str> {
    key.rfind(['.', '[']).map(|end| &key[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_start_at_the_file_that_names_them() {
        let at = |path| relative_to(Path::new("/etc/tideline/agent.toml"), Path::new(path));
        assert_eq!(at("ca.pem"), Path::new("/etc/tideline/ca.pem"));
        assert_eq!(at("/ca.pem"), Path::new("/ca.pem"));
    }

    #[test]
    fn keys_are_written_as_toml_writes_them() {
        assert_eq!(join("", "mqtt"), "mqtt");
        assert_eq!(join("a.b", "c-d_1"), "a.b.c-d_1");
        assert_eq!(join("a", "b.c"), "a.\"b.c\"");
        assert_eq!(join("a", "\u{1b}[2J"), "a.\"\\u{1b}[2J\"");
        assert_eq!(element("a.b", 3), "a.b[3]");
        assert_eq!(parent("a.b[3].c"), Some("a.b[3]"));
        assert_eq!(parent("a.b[3]"), Some("a.b"));
        assert_eq!(parent("a"), None);
    }
}
