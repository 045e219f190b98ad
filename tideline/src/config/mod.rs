//! `tideline config`: what is desired of a device's settings, or of a group's, and what is in
//! force.

mod keys;
mod show;

use std::process::ExitCode;
use std::time::Duration;

use api::config::{
    ChangeDeviceConfig, ConfigBody, HistoryBody, ListDeviceConfigHistory, ShowDeviceConfig, Wanted,
    WhichChanges,
};
use api::groups::{ChangeGroupConfig, ListGroupConfigHistory, OfGroup, ShowGroupConfig};
use api::{Endpoint as _, OfDevice};
use clap::{Args, Subcommand};
use daemon::{Class, Failure};
use schema::DeviceId;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::client::{Answered, Pages};
use crate::output::{Column, instant, plain};
use crate::session::{self, Outcome, Session};

/// How often `--wait` looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What a history shows.
const HISTORY: [Column<HistoryBody>; 4] = [
    Column::new("AT", |change| instant(&change.changed_at)),
    Column::new("BY", |change| plain(&change.changed_by)),
    Column::new("KEY", |change| plain(&change.key)),
    Column::new("VALUE", |change| show::desired(&change.value)),
];

/// Settings of devices.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  \
                  tideline config keys\n  \
                  tideline config set press-7 host.interval_seconds 2.5 --wait 30s\n  \
                  tideline config set --group presses host.interval_seconds 10\n  \
                  tideline config show press-7\n\n\
                  A device is in the group that its label `group` names.\n\n\
                  Exit codes: 0 done, 1 not in force in time, or the bridge refuses or does not answer, 2 wrong arguments."
)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what is desired and what is in force
    #[command(override_usage = "tideline config show [OPTIONS] DEVICE\n       \
                                tideline config show [OPTIONS] --group NAME")]
    Show {
        #[command(flatten)]
        whose: Whose,
        #[command(flatten)]
        wait: Wait,
    },
    /// Set keys
    #[command(
        override_usage = "tideline config set [OPTIONS] DEVICE KEY VALUE [KEY VALUE]...\n       \
                          tideline config set [OPTIONS] --group NAME KEY VALUE [KEY VALUE]...",
        after_help = "A value is JSON, as 2.5 or true; what is no JSON is taken as a text.\n\n\
                      Examples:\n  \
                      tideline config set press-7 host.interval_seconds 2.5 commands.parallel 2\n  \
                      tideline config set press-7 commands.parallel 1 --if-match 0192a3b4c5d60000\n\n\
                      `tideline config show` tells the tag for --if-match: with it nothing is changed that \
                      somebody else changed since."
    )]
    Set {
        /// The device, unless there is --group, and then keys and their values
        #[arg(required = true, num_args = 2.., value_names = ["DEVICE", "KEY", "VALUE"])]
        words: Vec<String>,
        #[command(flatten)]
        change: Change,
    },
    /// Take keys back to what the device's own settings file says
    #[command(
        override_usage = "tideline config unset [OPTIONS] DEVICE KEY...\n       \
                                tideline config unset [OPTIONS] --group NAME KEY..."
    )]
    Unset {
        /// The device, unless there is --group, and then keys
        #[arg(required = true, num_args = 1.., value_names = ["DEVICE", "KEY"])]
        words: Vec<String>,
        #[command(flatten)]
        change: Change,
    },
    /// List who changed what, latest first
    #[command(override_usage = "tideline config history [OPTIONS] DEVICE\n       \
                                tideline config history [OPTIONS] --group NAME")]
    History {
        #[command(flatten)]
        whose: Whose,
        /// Only changes of this key
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
    },
    /// List the keys that agents know, and what their values may be
    Keys {
        /// Print JSON, one key a line
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Group {
    /// The settings of a group, instead of a device's
    #[arg(long = "group", value_name = "NAME")]
    group: Option<String>,
}

#[derive(Debug, Args)]
struct Whose {
    /// The device
    #[arg(required_unless_present = "group", conflicts_with = "group")]
    device: Option<DeviceId>,
    #[command(flatten)]
    group: Group,
}

#[derive(Debug, Args)]
struct Change {
    #[command(flatten)]
    group: Group,
    /// Change nothing if anything has changed since this tag was shown
    #[arg(long, value_name = "TAG")]
    if_match: Option<String>,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
struct Wait {
    /// Wait so long at most until everything is in force on the device
    #[arg(long, value_name = "TIME", conflicts_with = "group", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
}

/// Whose settings.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Device(OfDevice),
    Group(OfGroup),
}

/// Asks the bridge.
pub(crate) async fn run(options: &Options, session: &mut Session) -> Outcome {
    match &options.action {
        Action::Keys { json } => {
            keys::print(*json);
            Ok(ExitCode::SUCCESS)
        }
        Action::History { whose, key, limit } => {
            let (key, limit) = (key.clone(), *limit as usize);
            let which = WhichChanges {
                key,
                ..WhichChanges::default()
            };
            match Target::of(whose)? {
                Target::Device(of) => {
                    let request = ListDeviceConfigHistory::at(of).query(which);
                    session.list(Pages::new(request, limit), &HISTORY).await
                }
                Target::Group(of) => {
                    let request = ListGroupConfigHistory::at(of).query(which);
                    session.list(Pages::new(request, limit), &HISTORY).await
                }
            }
        }
        Action::Show { whose, wait } => match Target::of(whose)? {
            Target::Device(of) => {
                let request = ShowDeviceConfig::at(of.clone());
                let answer = session.api()?.ask(&request).await?;
                follow(session, of, answer, wait.wait).await
            }
            Target::Group(of) => {
                let answer = session.api()?.ask(&ShowGroupConfig::at(of)).await?;
                session.show(&answer, |config| show::group(config, answer.tag.as_deref()))
            }
        },
        Action::Set { words, change } => change.send(session, words, assignments).await,
        Action::Unset { words, change } => change.send(session, words, removals).await,
    }
}

impl Change {
    /// Sends what the words say, and shows how the settings are then.
    async fn send(
        &self,
        session: &mut Session,
        words: &[String],
        parse: fn(&[String]) -> Result<Wanted, Failure>,
    ) -> Outcome {
        let (target, rest) = Target::split(words, &self.group)?;
        let (wanted, tag) = (parse(rest)?, self.if_match.as_deref());
        match target {
            Target::Device(of) => {
                let request = ChangeDeviceConfig::at(of.clone()).body(wanted);
                let answer = session.api()?.ask_if(&request, tag).await?;
                follow(session, of, answer, self.wait.wait).await
            }
            Target::Group(of) => {
                let request = ChangeGroupConfig::at(of).body(wanted);
                let answer = session.api()?.ask_if(&request, tag).await?;
                session.show(&answer, |config| show::group(config, answer.tag.as_deref()))
            }
        }
    }
}

impl Target {
    fn of(Whose { device, group }: &Whose) -> Result<Self, Failure> {
        match (&group.group, device) {
            (Some(name), _) => Ok(Self::group(name)),
            (None, Some(device)) => Ok(Self::Device(OfDevice {
                device: device.clone(),
            })),
            (None, None) => Err(wrong("name a device, or --group NAME")),
        }
    }

    fn group(name: &str) -> Self {
        Self::Group(OfGroup {
            group: name.to_owned(),
        })
    }

    /// The device is the first word when there is no group.
    fn split<'w>(words: &'w [String], group: &Group) -> Result<(Self, &'w [String]), Failure> {
        if let Some(name) = &group.group {
            return Ok((Self::group(name), words));
        }
        let (first, rest) = words
            .split_first()
            .ok_or_else(|| wrong("name a device, or --group NAME"))?;
        let device = first
            .parse()
            .map_err(|error| wrong(&format!("device {first:?}: {error}")))?;
        Ok((Self::Device(OfDevice { device }), rest))
    }
}

/// `KEY VALUE KEY VALUE …` as the API takes them.
fn assignments(words: &[String]) -> Result<Wanted, Failure> {
    let mut wanted = Wanted::default();
    for pair in words.chunks(2) {
        let [key, value] = pair else {
            return Err(wrong("each key needs a value, after the device or --group"));
        };
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value.as_str()));
        if value.is_null() {
            return Err(wrong(&format!("`config unset` takes {key} away")));
        }
        if wanted.0.insert(key.clone(), value).is_some() {
            return Err(wrong(&format!("{key} stands twice")));
        }
    }
    match wanted.0.is_empty() {
        true => Err(wrong("name a key and its value")),
        false => Ok(wanted),
    }
}

/// `KEY KEY …` as the API takes them away.
fn removals(keys: &[String]) -> Result<Wanted, Failure> {
    let keys = keys.iter().map(|key| (key.clone(), Value::Null));
    let wanted = Wanted(keys.collect());
    match wanted.0.is_empty() {
        true => Err(wrong("name a key")),
        false => Ok(wanted),
    }
}

/// Shows a device's settings, and waits until they are in force if that was asked for.
async fn follow(
    session: &mut Session,
    of: OfDevice,
    mut answer: Answered<ConfigBody>,
    wait: Option<Duration>,
) -> Outcome {
    let Some(wait) = wait else {
        let tag = answer.tag.as_deref();
        return session.show(&answer, |config| show::device(config, tag));
    };
    let deadline = Instant::now() + wait;
    let request = ShowDeviceConfig::at(of);
    loop {
        let is_in_force = show::is_in_force(&answer.body()?);
        if is_in_force || Instant::now() >= deadline {
            let tag = answer.tag.as_deref();
            let shown = session.show(&answer, |config| show::device(config, tag));
            if !is_in_force {
                return Err(
                    Failure::new(Class::Network, "see everything in force in time")
                        .help("what is desired stays so, and is sent when the device comes online"),
                );
            }
            return shown;
        }
        sleep(LOOK_EVERY).await;
        answer = session.api()?.ask(&request).await?;
    }
}

fn wrong(reason: &str) -> Failure {
    session::wrong("config", reason)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn values_are_json_or_texts() {
        let body = assignments(&words(&["a", "2.5", "b", "debug", "c", "true", "d", "[1]"]));
        assert_eq!(
            json!(body.unwrap()),
            json!({"a": 2.5, "b": "debug", "c": true, "d": [1]})
        );
        for wrong in [&["a"][..], &[], &["a", "1", "a", "2"], &["a", "null"]] {
            assert!(assignments(&words(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_first_word_is_the_device_unless_there_is_a_group() {
        let line = words(&["press-7", "key"]);
        let (target, rest) = Target::split(&line, &Group { group: None }).unwrap();
        let Target::Device(of) = target else {
            panic!("{target:?}");
        };
        let path = ShowDeviceConfig::at(of).target().unwrap();
        assert_eq!(path, "/api/v1/devices/press-7/config");
        assert_eq!(rest, ["key"]);
        let group = Group {
            group: Some("hall 1".to_owned()),
        };
        let (target, rest) = Target::split(&line, &group).unwrap();
        let Target::Group(of) = target else {
            panic!("{target:?}");
        };
        let path = ShowGroupConfig::at(of).target().unwrap();
        assert_eq!(path, "/api/v1/groups/hall%201/config");
        assert_eq!(rest.len(), 2);
        assert!(Target::split(&words(&["a b"]), &Group { group: None }).is_err());
    }
}
