//! New names for sensors: each `*` of the new name is what the same `*` of the rule's pattern stood for.

use crate::buffer::SensorPattern;

/// A new name, in parts between stars.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rename(Vec<String>);

/// Why a text is no new name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenameError {
    /// It has no characters.
    #[error("is empty; drop = true leaves sensors out")]
    Empty,
    /// It has stars for which nothing stands.
    #[error(
        "has {stars} stars, and its pattern {pattern}: each stands for what the same one of the pattern does"
    )]
    Stars {
        /// Of the new name.
        stars: usize,
        /// Of the pattern.
        pattern: usize,
    },
}

impl Rename {
    /// Reads a new name for the sensors of a pattern.
    ///
    /// # Errors
    /// When it is empty, or has more stars than the pattern.
    pub fn parse(text: &str, pattern: &SensorPattern) -> Result<Self, RenameError> {
        if text.is_empty() {
            return Err(RenameError::Empty);
        }
        let parts: Vec<String> = text.split('*').map(str::to_owned).collect();
        let (stars, of_pattern) = (parts.len() - 1, pattern.stars());
        if stars > of_pattern {
            return Err(RenameError::Stars {
                stars,
                pattern: of_pattern,
            });
        }
        Ok(Self(parts))
    }

    /// The new name of a sensor that matches the pattern.
    pub(super) fn apply(&self, pattern: &SensorPattern, sensor: &str) -> String {
        let matched = pattern.captures(sensor).unwrap_or_default();
        let mut matched = matched.into_iter();
        let mut name = String::new();
        for (at, part) in self.0.iter().enumerate() {
            if at > 0 {
                name.push_str(matched.next().unwrap_or_default());
            }
            name.push_str(part);
        }
        name
    }
}
