//! `tideline device`: which devices there are, what they are labelled, which are retired, and what is
//! to become of what they have in quarantine.

use std::time::Duration;

use api::commands::{NewCommand, SendCommand};
use api::fleet::{
    DeviceBody, DevicePatch, LabelDevice, ListDevices, ReinstateDevice, RetireDevice, ShowDevice,
    WhichDevices,
};
use api::sensors::{ListSensors, SensorBody};
use api::{Endpoint as _, Nothing, OfDevice};
use clap::{Args, Subcommand};
use schema::DeviceId;
use schema::message::RejectReason;
use serde_json::{Value, json};

use crate::client::Pages;
use crate::labels::{self, Change, Label};
use crate::output::{self, Column, Confirm, instant, plain};
use crate::session::{Outcome, Session};

/// What a list shows.
const COLUMNS: [Column<DeviceBody>; 5] = [
    Column::new("DEVICE", |device| plain(&device.device)),
    Column::new("STATE", |device| state(device).to_owned()),
    Column::new("LAST SEEN", |device| instant(&device.last_seen)),
    Column::new("AGENT", |device| plain(&device.agent_version)),
    Column::new("LABELS", |device| labels::line(&device.labels)),
];

/// What sensors show.
const SENSORS: [Column<SensorBody>; 6] = [
    Column::new("SENSOR", |sensor| plain(sensor.sensor.as_str())),
    Column::new("UNIT", |sensor| plain(&sensor.unit)),
    Column::new("TYPE", |sensor| {
        let value_type = sensor.value_type;
        value_type.map_or_else(|| "-".to_owned(), |of| of.to_string())
    }),
    Column::new("RANGE", range),
    Column::new("EVERY", |sensor| {
        let seconds = sensor.interval_seconds;
        seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s"))
    }),
    Column::new("DESCRIPTION", |sensor| plain(&sensor.description)),
];

/// Devices of the fleet.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  \
                  tideline device list --label site=lyon --online\n  \
                  tideline device label press-7 site=lyon line=3 old-\n  \
                  tideline device retire press-7 --yes\n  \
                  tideline device requeue press-7 --reason too_new\n\n\
                  Exit codes: 0 done, 1 the bridge refuses or does not answer, 2 wrong arguments."
)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List devices
    #[command(after_help = "Examples:\n  \
                            tideline device list --prefix press- --offline\n  \
                            tideline device list --label site=lyon --label line=3 --json")]
    List {
        /// Only those with this label; may be given several times, and all must hold
        #[arg(long, value_name = "KEY=VALUE", value_parser = labels::label)]
        label: Vec<Label>,
        /// Only those that are connected
        #[arg(long, conflicts_with = "offline")]
        online: bool,
        /// Only those that are not
        #[arg(long)]
        offline: bool,
        /// Those that are retired, instead of those that are not
        #[arg(long)]
        retired: bool,
        /// Only those whose id begins so
        #[arg(long, value_name = "TEXT")]
        prefix: Option<String>,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
    },
    /// Show one device
    Show {
        /// The device
        device: DeviceId,
    },
    /// List what sensors of a device are: units, types, descriptions
    #[command(after_help = "Examples:\n  \
                            tideline device sensors press-7\n  \
                            tideline device sensors press-7 --json\n\n\
                            Sensors are declared by `[[sensor]]` in agent.toml and by sources.")]
    Sensors {
        /// The device
        device: DeviceId,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 4_096, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
    },
    /// Set labels, and take away those that end with a hyphen
    #[command(after_help = "Examples:\n  \
                            tideline device label press-7 site=lyon line=3\n  \
                            tideline device label press-7 line-        (takes `line` away)\n\n\
                            A device is in the group that its label `group` names: see `tideline config --help`.")]
    Label {
        /// The device
        device: DeviceId,
        /// What changes: KEY=VALUE or KEY-
        #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = labels::change)]
        changes: Vec<Change>,
    },
    /// Take a device out of service: its commands are withdrawn, and lists leave it out
    Retire {
        /// The device
        device: DeviceId,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Take a retired device back into service
    Reinstate {
        /// The device
        device: DeviceId,
    },
    /// Have a device offer again what is in its quarantine, once what was wrong is mended
    #[command(after_help = "Examples:\n  \
                            tideline device requeue press-7\n  \
                            tideline device requeue press-7 --reason too_new\n\n\
                            `tideline ledger press-7` shows what is in quarantine, and why.")]
    Requeue(Quarantine),
    /// Have a device give up what is in its quarantine, for good
    #[command(after_help = "Examples:\n  \
                            tideline device discard press-7 --reason unstorable --yes\n\n\
                            The ledger then counts those readings as discarded by a person.")]
    Discard {
        #[command(flatten)]
        what: Quarantine,
        #[command(flatten)]
        confirm: Confirm,
    },
}

#[derive(Debug, Args)]
struct Quarantine {
    /// The device
    device: DeviceId,
    /// Only what was refused for this reason: too_new, too_old, unstorable …
    #[arg(long, value_parser = reason)]
    reason: Option<RejectReason>,
    /// How long the command may wait for its device
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
}

/// Asks the bridge.
pub(crate) async fn run(options: &Options, session: &mut Session) -> Outcome {
    let of = |device: &DeviceId| OfDevice {
        device: device.clone(),
    };
    let answer = match &options.action {
        Action::List {
            label,
            online,
            offline,
            retired,
            prefix,
            limit,
        } => {
            let label = label
                .iter()
                .map(|Label { key, value }| format!("{key}={value}"));
            let request = ListDevices::at(Nothing {}).query(WhichDevices {
                label: label.collect(),
                online: (*online || *offline).then_some(*online),
                retired: retired.then_some(true),
                prefix: prefix.clone(),
                ..WhichDevices::default()
            });
            let pages = Pages::new(request, *limit as usize);
            return session.list(pages, &COLUMNS).await;
        }
        Action::Show { device } => session.api()?.ask(&ShowDevice::at(of(device))).await?,
        Action::Sensors { device, limit } => {
            let pages = Pages::large(ListSensors::at(of(device)), *limit as usize);
            return session.list(pages, &SENSORS).await;
        }
        Action::Label { device, changes } => {
            let labels = labels::patch(changes);
            let request = LabelDevice::at(of(device)).body(DevicePatch { labels });
            session.api()?.ask(&request).await?
        }
        Action::Retire { device, confirm } => {
            confirm.ask(&format!("retire {device} and withdraw its commands"))?;
            session.api()?.ask(&RetireDevice::at(of(device))).await?
        }
        Action::Reinstate { device } => {
            let request = ReinstateDevice::at(of(device));
            session.api()?.ask(&request).await?
        }
        Action::Requeue(what) => return what.send(session, "requeue").await,
        Action::Discard { what, confirm } => {
            let question = format!("give up what {} has in quarantine, for good", what.device);
            confirm.ask(&question)?;
            return what.send(session, "discard").await;
        }
    };
    session.show(&answer, show)
}

impl Quarantine {
    /// A command like others: kept until the device has run it.
    async fn send(&self, session: &mut Session, name: &str) -> Outcome {
        let arguments = match self.reason {
            Some(reason) => json!({ "reason": reason }),
            None => json!({}),
        };
        let body = NewCommand {
            name: name.to_owned(),
            arguments,
            ttl_seconds: Some(self.ttl.as_secs()),
            priority: 0,
        };
        let device = self.device.clone();
        let request = SendCommand::at(OfDevice { device }).body(body);
        let answer = session.api()?.ask_once(&request).await?;
        session.show(&answer, |command| {
            let (device, id) = (&self.device, plain(&command.id));
            output::print(&format!(
                "{name} is on its way to {device}: `tideline command show {device} {id} --watch`"
            ));
        })
    }
}

/// A reason as the ledger names it.
fn reason(text: &str) -> Result<RejectReason, String> {
    serde_json::from_value(Value::from(text)).map_err(|_| {
        "reasons are not_finite, bad_text, too_old, too_new, out_of_range, undecodable, \
         epoch_reuse and unstorable"
            .to_owned()
    })
}

fn range(sensor: &SensorBody) -> String {
    match (sensor.min, sensor.max) {
        (None, None) => "-".to_owned(),
        (Some(min), None) => format!("from {min}"),
        (None, Some(max)) => format!("to {max}"),
        (Some(min), Some(max)) => format!("{min} to {max}"),
    }
}

fn state(device: &DeviceBody) -> &'static str {
    match (&device.retired_at, device.online) {
        (Some(_), _) => "retired",
        (None, true) => "online",
        (None, false) => "offline",
    }
}

fn show(device: &DeviceBody) {
    let mut facts = vec![
        ("device", plain(&device.device)),
        ("state", state(device).to_owned()),
        ("first seen", instant(&device.first_seen)),
        ("last seen", instant(&device.last_seen)),
        ("agent", plain(&device.agent_version)),
        ("buffer", plain(&device.epoch)),
        ("labels", labels::line(&device.labels)),
    ];
    if device.retired_at.is_some() {
        facts.push(("retired", instant(&device.retired_at)));
    }
    output::facts(&facts);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_that_bridges_give() {
        assert_eq!(reason("too_new"), Ok(RejectReason::TooNew));
        assert!(reason("late").unwrap_err().contains("too_old"));
    }

    #[test]
    fn a_retired_device_is_told_first() {
        let of = |online: bool, retired_at: Option<&str>| {
            // As a bridge says that knows neither labels nor retirement.
            let mut body =
                json!({"device": "press-7", "online": online, "first_seen": "", "last_seen": ""});
            if let Some(at) = retired_at {
                body["retired_at"] = at.into();
            }
            serde_json::from_value::<DeviceBody>(body).unwrap()
        };
        assert_eq!(state(&of(true, None)), "online");
        assert_eq!(state(&of(false, None)), "offline");
        assert_eq!(state(&of(true, Some("2026-01-01T00:00:00Z"))), "retired");
    }
}
