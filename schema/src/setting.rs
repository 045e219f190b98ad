//! The settings of an agent that can be changed while it runs: their keys, types and bounds, known
//! to the bridge that refuses wrong ones and to the agent that applies them.

use std::time::Duration;

/// A setting and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// `host.interval_seconds`: between two scans of the device's own sensors; 0.1 to 86,400.
    HostInterval(Duration),
    /// `commands.parallel`: how many commands may run at the same time; 1 to 8.
    CommandsParallel(u8),
}

/// Why a key and a value are no setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// Nothing has this key.
    #[error("is none of {}", Setting::KEYS.join(", "))]
    Unknown,
    /// Not a number, or one out of bounds.
    #[error("must be {0}")]
    Value(&'static str),
}

impl Setting {
    /// The key of [`Self::HostInterval`].
    pub const HOST_INTERVAL: &'static str = "host.interval_seconds";

    /// The key of [`Self::CommandsParallel`].
    pub const COMMANDS_PARALLEL: &'static str = "commands.parallel";

    /// All keys.
    pub const KEYS: [&'static str; 2] = [Self::COMMANDS_PARALLEL, Self::HOST_INTERVAL];

    /// Reads a key and the JSON text of its value.
    ///
    /// # Errors
    /// [`SettingError`] says what would be right.
    pub fn parse(key: &str, json: &str) -> Result<Self, SettingError> {
        match key {
            Self::HOST_INTERVAL => {
                let wrong = SettingError::Value("a number of seconds from 0.1 to 86400");
                let seconds = number(json).ok_or_else(|| wrong.clone())?;
                if !(0.1..=86_400.0).contains(&seconds) {
                    return Err(wrong);
                }
                Ok(Self::HostInterval(Duration::from_secs_f64(seconds)))
            }
            Self::COMMANDS_PARALLEL => match json.trim().parse() {
                Ok(parallel @ 1..=8) => Ok(Self::CommandsParallel(parallel)),
                _ => Err(SettingError::Value("a whole number from 1 to 8")),
            },
            _ => Err(SettingError::Unknown),
        }
    }
}

/// A JSON number: what Rust reads beyond that (`inf`, `+1`, `.5`) is none.
fn number(json: &str) -> Option<f64> {
    let json = json.trim();
    let begins = json
        .trim_start_matches('-')
        .starts_with(|c: char| c.is_ascii_digit());
    json.parse()
        .ok()
        .filter(|number: &f64| begins && number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_setting_has_its_bounds() {
        let seconds = |json| Setting::parse("host.interval_seconds", json);
        for (json, millis) in [("0.1", 100), ("86400", 86_400_000), (" 1e1 ", 10_000)] {
            let expected = Setting::HostInterval(Duration::from_millis(millis));
            assert_eq!(seconds(json), Ok(expected), "{json}");
        }
        for json in [
            "0.09", "86400.1", "-1", "NaN", "inf", "+1", "\"10s\"", "null", "", "[1]",
        ] {
            assert!(
                matches!(seconds(json), Err(SettingError::Value(_))),
                "{json}"
            );
        }
        let parallel = |json| Setting::parse("commands.parallel", json);
        assert_eq!(parallel("1"), Ok(Setting::CommandsParallel(1)));
        assert_eq!(parallel("8"), Ok(Setting::CommandsParallel(8)));
        for json in ["0", "9", "1.5", "-1", "true"] {
            assert!(
                matches!(parallel(json), Err(SettingError::Value(_))),
                "{json}"
            );
        }
        assert_eq!(
            Setting::parse("host.interval", "1"),
            Err(SettingError::Unknown)
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_setting_or_an_error(key in 0..Setting::KEYS.len(), json: String) {
            let _ = Setting::parse(Setting::KEYS[key], &json);
        }
    }
}
