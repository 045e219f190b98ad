//! Roles of callers, what endpoints ask of them, and which role may what.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Looks at everything, changes nothing.
    Viewer,
    /// Also sends commands and changes configuration.
    Operator,
    /// Also what decides over data and access.
    Admin,
    /// Looks at the one device that the token is made out to, and hands in its readings.
    Device,
}

/// What an endpoint asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Looking at the fleet.
    ReadFleet,
    /// Looking at the device that the path names.
    ReadDevice,
    /// Handing in readings of the device that the path names.
    WriteReadings,
    /// Having devices do something, or changing their configuration.
    Operate,
    /// Deciding over data and access.
    Administer,
}

/// A text that names no role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is none of viewer, operator, admin, device")]
pub struct UnknownRole;

impl Access {
    /// As it stands in the API's description.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadFleet => "read_fleet",
            Self::ReadDevice => "read_device",
            Self::WriteReadings => "write_readings",
            Self::Operate => "operate",
            Self::Administer => "administer",
        }
    }
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::Admin, Self::Device];

    /// As it stands in a token.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Device => "device",
        }
    }

    /// Whether a token of this role, made out to `subject`, may do this; `device` is the one in the
    /// path.
    #[must_use]
    pub fn may(self, access: Access, subject: &str, device: Option<&str>) -> bool {
        match self {
            Self::Admin => true,
            Self::Operator => match access {
                Access::ReadFleet | Access::ReadDevice | Access::Operate => true,
                Access::WriteReadings | Access::Administer => false,
            },
            Self::Viewer => match access {
                Access::ReadFleet | Access::ReadDevice => true,
                Access::WriteReadings | Access::Operate | Access::Administer => false,
            },
            Self::Device => match access {
                Access::ReadDevice | Access::WriteReadings => device == Some(subject),
                Access::ReadFleet | Access::Operate | Access::Administer => false,
            },
        }
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let mut all = Self::ALL.into_iter();
        all.find(|role| role.as_str() == text).ok_or(UnknownRole)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_read_as_they_are_written() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
            let json = serde_json::to_string(&role).unwrap();
            assert_eq!(json, format!("\"{role}\""));
        }
        assert_eq!("root".parse::<Role>(), Err(UnknownRole));
    }
}
