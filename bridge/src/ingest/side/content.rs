//! What a device says beside readings, as values: its kinds, and which of it there is only a latest one of.

use schema::DeviceId;
use schema::message::{CommandId, Status};
use schema::time::ReceivedAt;
use store::commands::ProgressReport;
use store::config::ConfigReport;
use store::sensors::SensorsReport;
use store::{DeadLetter, DeviceReport, Presence};

/// What a device says beside readings, or what could not be used.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// A birth or a will.
    Presence(Presence),
    /// Its side of the ledger.
    Report(DeviceReport),
    /// Progress of a command.
    Progress(ProgressReport),
    /// The configuration that it has.
    Config(ConfigReport),
    /// What some of its sensors are.
    Sensors(SensorsReport),
    /// A payload that could not be used, and its digest where it is to be refused.
    Letter(DeadLetter, Option<u64>),
}

/// Kinds of contents: each is written by a statement of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Letter,
    Presence,
    Report,
    Progress,
    Config,
    Sensors,
}

/// Of what there is only a latest one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Slot {
    Birth,
    Will,
    Report,
    Config,
    Progress(CommandId),
    /// Each message speaks of other sensors.
    Sensors(u64),
    /// Each letter is one.
    Letter(u64),
}

impl Slot {
    /// Whether a device may have many of its kind.
    pub(super) const fn is_shared(&self) -> bool {
        match self {
            Self::Progress(_) | Self::Sensors(_) | Self::Letter(_) => true,
            Self::Birth | Self::Will | Self::Report | Self::Config => false,
        }
    }
}

impl Content {
    pub(super) const fn kind(&self) -> Kind {
        match self {
            Self::Presence(_) => Kind::Presence,
            Self::Report(_) => Kind::Report,
            Self::Progress(_) => Kind::Progress,
            Self::Config(_) => Kind::Config,
            Self::Sensors(_) => Kind::Sensors,
            Self::Letter(..) => Kind::Letter,
        }
    }

    pub(super) const fn device(&self) -> Option<&DeviceId> {
        match self {
            Self::Presence(Presence { device, .. })
            | Self::Report(DeviceReport { device, .. })
            | Self::Progress(ProgressReport { device, .. })
            | Self::Config(ConfigReport { device, .. })
            | Self::Sensors(SensorsReport { device, .. }) => Some(device),
            Self::Letter(letter, _) => letter.device.as_ref(),
        }
    }

    /// When the bridge took it, by the database's time.
    pub(super) const fn stamp(&mut self, at: ReceivedAt) {
        match self {
            Self::Presence(Presence { received_at, .. })
            | Self::Report(DeviceReport { received_at, .. })
            | Self::Progress(ProgressReport { received_at, .. })
            | Self::Config(ConfigReport { received_at, .. })
            | Self::Sensors(SensorsReport { received_at, .. })
            | Self::Letter(DeadLetter { received_at, .. }, _) => *received_at = at,
        }
    }

    pub(super) fn slot(&self, order: u64) -> Slot {
        match self {
            Self::Presence(presence) => match presence.status {
                Status::Online { .. } => Slot::Birth,
                Status::Offline { .. } => Slot::Will,
            },
            Self::Report(_) => Slot::Report,
            Self::Progress(report) => Slot::Progress(report.progress.id),
            Self::Config(_) => Slot::Config,
            Self::Sensors(_) => Slot::Sensors(order),
            Self::Letter(..) => Slot::Letter(order),
        }
    }
}

impl Kind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Letter => "dead letters",
            Self::Presence => "births and wills",
            Self::Report => "reports",
            Self::Progress => "progress of commands",
            Self::Config => "configurations",
            Self::Sensors => "declarations of sensors",
        }
    }
}
