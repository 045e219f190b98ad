//! Who may do what: a pure function of the certificate's identity and the packet.
//!
//! | role | publishes | hears | client id |
//! |---|---|---|---|
//! | device | its own `up/#` | its own `down/#` | its name |
//! | bridge | any `down/#` | all `up/#` | its name, or `NAME-…`, `NAME.…` |
//! | observer | nothing | everything under `tl/v1` | any |
//!
//! `#` alone is allowed to an observer: nothing but `tl/v1` exists here, so it means the same.
//! An observer's client id is its own business (`mosquitto_sub` draws one at random): connections
//! are told apart by name *and* client id, so that nobody takes over another identity's session.

use certs::{Identity, Role};
use schema::Topic;

use crate::error::Refusal;
use crate::filter::{Channels, Requested};

/// Longest client id, in bytes; MQTT demands 23 of every broker.
const CLIENT_ID_BYTES_MAX: usize = 128;

/// Whether this role connects at all.
pub(crate) fn connect(identity: &Identity) -> Result<(), Refusal> {
    match identity.role {
        Role::Device | Role::Bridge | Role::Observer => Ok(()),
        // A stolen server key must not become a client.
        Role::Server => Err(Refusal::Role),
    }
}

/// Whether the identity may use this client id. An empty one asks the broker to choose.
pub(crate) fn client_id(identity: &Identity, id: &str) -> Result<(), Refusal> {
    let sound = |byte: u8| byte.is_ascii_graphic() && !b"/+#$".contains(&byte);
    if id.len() > CLIENT_ID_BYTES_MAX || !id.bytes().all(sound) {
        return Err(Refusal::ClientId);
    }
    let name = identity.name.as_str();
    let owned = match identity.role {
        Role::Device => id.is_empty() || id == name,
        Role::Bridge => match id.strip_prefix(name) {
            _ if id.is_empty() => true,
            Some(rest) => rest.is_empty() || rest.starts_with(['-', '.']),
            None => false,
        },
        Role::Observer => true,
        Role::Server => false,
    };
    if owned {
        Ok(())
    } else {
        Err(Refusal::WrongName)
    }
}

/// Whether the identity may publish on this topic.
pub(crate) fn publish(identity: &Identity, topic: &Topic) -> Result<(), Refusal> {
    let allowed = match identity.role {
        Role::Device => topic.channel.is_up() && topic.device.as_str() == identity.name.as_str(),
        Role::Bridge => !topic.channel.is_up(),
        Role::Observer | Role::Server => false,
    };
    if allowed {
        Ok(())
    } else {
        Err(Refusal::Publish)
    }
}

/// Whether the identity may hear what this filter matches. A filter that matches nothing is
/// allowed to observers alone: elsewhere it is a mistake that should show. A device shares its
/// messages with nobody.
pub(crate) fn subscribe(identity: &Identity, requested: &Requested) -> Result<(), Refusal> {
    let channels = requested.filter.channels;
    let allowed = match identity.role {
        Role::Device => {
            requested.group.is_none()
                && requested.filter.device == identity.device()
                && channels.is_within(Channels::DOWN)
                && !channels.is_empty()
        }
        Role::Bridge => channels.is_within(Channels::UP) && !channels.is_empty(),
        Role::Observer => true,
        Role::Server => false,
    };
    if allowed {
        Ok(())
    } else {
        Err(Refusal::Subscribe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: [Role; 4] = Role::ALL;

    fn identity(role: Role) -> Identity {
        let name = match role {
            Role::Device => "press-7",
            Role::Bridge => "bridge",
            Role::Observer => "eye",
            Role::Server => "broker",
        };
        Identity {
            name: name.parse().unwrap(),
            role,
        }
    }

    /// Each row: what is asked for, then who may: device, bridge, observer, server.
    fn check_table<T>(
        rows: &[(&str, [bool; 4])],
        parse: impl Fn(&str) -> T,
        rule: impl Fn(&Identity, &T) -> Result<(), Refusal>,
    ) {
        for (text, expected) in rows {
            for (role, expected) in ROLES.into_iter().zip(expected) {
                let allowed = rule(&identity(role), &parse(text)).is_ok();
                assert_eq!(allowed, *expected, "{role} with {text:?}");
            }
        }
    }

    #[test]
    fn publishing() {
        check_table(
            &[
                ("tl/v1/press-7/up/telemetry", [true, false, false, false]),
                ("tl/v1/press-7/up/event", [true, false, false, false]),
                ("tl/v1/press-7/up/status", [true, false, false, false]),
                ("tl/v1/press-8/up/telemetry", [false; 4]),
                ("tl/v1/press/up/telemetry", [false; 4]),
                ("tl/v1/press-77/up/telemetry", [false; 4]),
                ("tl/v1/press-7/down/ack", [false, true, false, false]),
                ("tl/v1/press-7/down/command", [false, true, false, false]),
                ("tl/v1/press-8/down/config", [false, true, false, false]),
                ("tl/v1/bridge/up/event", [false; 4]),
            ],
            |text| text.parse::<Topic>().unwrap(),
            publish,
        );
    }

    #[test]
    fn subscribing() {
        check_table(
            &[
                ("tl/v1/press-7/down/#", [true, false, true, false]),
                ("tl/v1/press-7/down/config", [true, false, true, false]),
                ("tl/v1/press-7/down/+", [true, false, true, false]),
                ("tl/v1/press-8/down/#", [false, false, true, false]),
                ("tl/v1/+/down/#", [false, false, true, false]),
                ("tl/v1/press-7/#", [false, false, true, false]),
                ("tl/v1/press-7/up/#", [false, true, true, false]),
                ("tl/v1/press-7/down", [false, false, true, false]),
                ("tl/v1/+/up/#", [false, true, true, false]),
                ("$share/bridges/tl/v1/+/up/#", [false, true, true, false]),
                ("$share/g/tl/v1/press-7/down/#", [false, false, true, false]),
                ("tl/v1/+/up/telemetry", [false, true, true, false]),
                ("tl/v1/+/+/telemetry", [false, true, true, false]),
                ("tl/v1/#", [false, false, true, false]),
                ("#", [false, false, true, false]),
                ("+/+/+/+/+", [false, false, true, false]),
                ("nothing/of/ours", [false, false, true, false]),
            ],
            |text| Requested::parse(text).unwrap(),
            subscribe,
        );
    }

    #[test]
    fn client_ids() {
        check_table(
            &[
                ("", [true, true, true, false]),
                ("press-7", [true, false, true, false]),
                ("press-8", [false, false, true, false]),
                ("press-7-2", [false, false, true, false]),
                ("bridge", [false, true, true, false]),
                ("bridge-2", [false, true, true, false]),
                ("bridge.a", [false, true, true, false]),
                ("bridges", [false, false, true, false]),
                ("auto-5C3A7D6B-1E2F", [false, false, true, false]),
                ("mosqsub|4711-host", [false, false, true, false]),
                ("a/b", [false; 4]),
                ("bridge-#", [false; 4]),
                ("bridge-+", [false; 4]),
                ("$eye", [false; 4]),
                ("bridge-\0", [false; 4]),
                ("bridge-ü", [false; 4]),
                ("bridge- ", [false; 4]),
            ],
            ToOwned::to_owned,
            |identity, id: &String| client_id(identity, id),
        );
    }

    #[test]
    fn client_ids_are_bounded() {
        let eye = identity(Role::Observer);
        for (bytes, fits) in [(127, true), (128, true), (129, false)] {
            assert_eq!(client_id(&eye, &"x".repeat(bytes)).is_ok(), fits, "{bytes}");
        }
    }

    #[test]
    fn servers_do_not_connect() {
        for role in ROLES {
            assert_eq!(connect(&identity(role)).is_ok(), role != Role::Server);
        }
    }
}
