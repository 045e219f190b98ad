//! Topics: which are meant, and what sensors are called by them. Pure.
//!
//! ```text
//! filter   zigbee2mqtt/+/#        as in MQTT
//! sensor   home/{2}/{name}        {1}, {2} … the levels of the topic, {topic} all of it, {name} that of the value
//! ```

use std::fmt::Write as _;
use std::str::FromStr;

use schema::SensorName;
use schema::id::IdError;

/// Longest filter and template, in bytes.
const BYTES_MAX: usize = 256;

/// A filter of MQTT 3.1.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter(String);

/// Why a text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FilterError {
    #[error("has {0} bytes: 1 to {BYTES_MAX} are allowed")]
    Length(usize),
    #[error("has + or # beside other characters of a level, or # before the last level: {0:?}")]
    Wildcard(String),
    #[error("holds a NUL")]
    Nul,
    #[error(
        "is a shared subscription, which would give this agent only a part of the messages: {0:?}"
    )]
    Shared(String),
}

/// How sensors are called, by the topics of their messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// A level of the topic, from 0.
    Level(usize),
    Topic,
    Name,
}

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TemplateError {
    #[error("has {0} bytes: 1 to {BYTES_MAX} are allowed")]
    Length(usize),
    #[error(
        "holds {{{0}}}: known are {{topic}}, {{name}} and the levels of the topic, {{1}}, {{2}} …"
    )]
    Unknown(String),
    #[error("has a brace that is not closed")]
    Open,
}

/// Why a message gives no sensor a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NameError {
    #[error("its topic has no level {0}")]
    NoLevel(usize),
    #[error("{0}")]
    NoName(#[from] IdError),
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        if text.is_empty() || text.len() > BYTES_MAX {
            return Err(FilterError::Length(text.len()));
        }
        if text.contains('\0') {
            return Err(FilterError::Nul);
        }
        if text.starts_with("$share/") || text.starts_with("$queue/") {
            return Err(FilterError::Shared(text.to_owned()));
        }
        let levels = text.split('/').count();
        let is_sound = |(at, level): (usize, &str)| match level {
            "+" => true,
            "#" => at + 1 == levels,
            other => !other.contains(['+', '#']),
        };
        match text.split('/').enumerate().all(is_sound) {
            true => Ok(Self(text.to_owned())),
            false => Err(FilterError::Wildcard(text.to_owned())),
        }
    }
}

impl Filter {
    /// The filter as it is sent.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether messages of this topic come by it.
    pub(super) fn matches(&self, topic: &str) -> bool {
        if topic.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let mut levels = topic.split('/');
        for wanted in self.0.split('/') {
            if wanted == "#" {
                return true;
            }
            match levels.next() {
                Some(level) if wanted == "+" || wanted == level => {}
                Some(_) | None => return false,
            }
        }
        levels.next().is_none()
    }

    /// The fewest levels that a topic of it has; whether it may have more.
    pub(super) fn levels(&self) -> (usize, bool) {
        let levels = self.0.split('/').count();
        match self.0.ends_with('#') {
            true => (levels - 1, true),
            false => (levels, false),
        }
    }
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        if text.is_empty() || text.len() > BYTES_MAX {
            return Err(TemplateError::Length(text.len()));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let (word, behind) = behind.split_once('}').ok_or(TemplateError::Open)?;
            parts.push(match (word, word.parse()) {
                ("topic", _) => Part::Topic,
                ("name", _) => Part::Name,
                (_, Ok(level @ 1..=BYTES_MAX)) => Part::Level(level - 1),
                _ => return Err(TemplateError::Unknown(word.to_owned())),
            });
            rest = behind;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }
}

impl Template {
    /// The whole topic.
    pub(super) fn of_topic() -> Self {
        Self(vec![Part::Topic])
    }

    /// The last level that it needs of a topic, from 1; 0 when it needs none.
    pub(super) fn level_max(&self) -> usize {
        let levels = self.0.iter().map(|part| match part {
            Part::Level(level) => level + 1,
            Part::Text(_) | Part::Topic | Part::Name => 0,
        });
        levels.max().unwrap_or(0)
    }

    /// The sensor of a value called `name` in a message of this topic. Where the template says nothing of the name, it
    /// stands behind all else.
    pub(super) fn sensor(&self, topic: &str, name: Option<&str>) -> Result<SensorName, NameError> {
        let mut sensor = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => sensor.push_str(text),
                Part::Topic => sensor.push_str(topic),
                Part::Name => sensor.push_str(name.unwrap_or_default()),
                Part::Level(level) => {
                    let found = topic.split('/').nth(*level);
                    sensor.push_str(found.ok_or(NameError::NoLevel(level + 1))?);
                }
            }
        }
        if let Some(name) = name
            && !self.0.contains(&Part::Name)
        {
            // Writing to a string does not fail.
            let _ = write!(sensor, "/{name}");
        }
        Ok(sensor.parse()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn filters_match_as_mqtt_says() {
        let check = |filter: &str, topic: &str, matches: bool| {
            let filter: Filter = filter.parse().unwrap();
            assert_eq!(filter.matches(topic), matches, "{filter:?} {topic}");
        };
        check("a/b", "a/b", true);
        check("a/b", "a/b/c", false);
        check("a/b", "a", false);
        check("a/+", "a/b", true);
        check("a/+", "a", false);
        check("a/+", "a/b/c", false);
        check("a/#", "a", true);
        check("a/#", "a/b/c", true);
        check("#", "a/b", true);
        check("#", "$SYS/uptime", false);
        check("+/x", "$SYS/x", false);
        check("$SYS/#", "$SYS/uptime", true);
        check("+/+", "/a", true);
        check("/+", "/a", true);
        check("+", "/a", false);
    }

    #[test]
    fn what_is_no_filter_is_said_to_be_none() {
        let check = |text: &str, part: &str| {
            let error = text.parse::<Filter>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        };
        check("", "has 0 bytes");
        check("a+", "beside other characters");
        check("#/a", "before the last level");
        check("a\0", "NUL");
        check("$share/g/a", "shared");
        for bytes in [BYTES_MAX, BYTES_MAX + 1] {
            let parsed = "x".repeat(bytes).parse::<Filter>();
            assert_eq!(parsed.is_ok(), bytes == BYTES_MAX);
            let parsed = "x".repeat(bytes).parse::<Template>();
            assert_eq!(parsed.is_ok(), bytes == BYTES_MAX);
        }
    }

    #[test]
    fn sensors_are_called_by_their_topics() {
        let check = |template: &str, topic: &str, name: Option<&str>, expected: &str| {
            let template: Template = template.parse().unwrap();
            let sensor = template.sensor(topic, name);
            let sensor = sensor.map_or_else(|error| error.to_string(), |name| name.to_string());
            assert_eq!(sensor, expected);
        };
        check("{topic}", "a/b", None, "a/b");
        check("{topic}", "a/b", Some("t"), "a/b/t");
        check(
            "home/{2}",
            "zigbee2mqtt/kitchen",
            Some("celsius"),
            "home/kitchen/celsius",
        );
        check(
            "{name}/{2}",
            "tele/plug/SENSOR",
            Some("power"),
            "power/plug",
        );
        check("{name}", "a", Some("x"), "x");
        check("{3}", "a/b", None, "its topic has no level 3");
        check("{name}", "a", None, "sensor name is empty");
        check("{1}", "/b", None, "sensor name is empty");
        let long = "t".repeat(128);
        check("{topic}", &long, None, &long);
        let longer = "t".repeat(129);
        check(
            "{topic}",
            &longer,
            None,
            "sensor name has 129 characters, at most 128 are allowed",
        );
        for (text, part) in [
            ("{0}", "{0}"),
            ("{x}", "{x}"),
            ("{", "not closed"),
            ("a{1", "not closed"),
        ] {
            let error = text.parse::<Template>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let template: Template = "a{3}b{1}".parse().unwrap();
        assert_eq!(template.level_max(), 3);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,40}", topic in ".{0,40}", name in proptest::option::of(".{0,8}")) {
            if let Ok(filter) = text.parse::<Filter>() {
                filter.matches(&topic);
                filter.levels();
            }
            if let Ok(template) = text.parse::<Template>() {
                let _ = template.sensor(&topic, name.as_deref());
            }
        }

        #[test]
        fn a_filter_of_a_topic_matches_it(levels in prop::collection::vec("[a-z]{0,3}", 1..5), plus in any::<prop::sample::Index>()) {
            let topic = levels.join("/");
            prop_assume!(!topic.is_empty());
            let mut wild = levels.clone();
            let at = plus.index(wild.len());
            wild[at] = "+".to_owned();
            for filter in [topic.clone(), wild.join("/"), format!("{topic}/#"), "#".to_owned()] {
                prop_assert!(filter.parse::<Filter>().unwrap().matches(&topic), "{} {}", filter, topic);
            }
        }
    }
}
