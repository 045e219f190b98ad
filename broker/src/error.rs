//! Why a client is refused, and why a connection ends. Each has a name in metrics and logs, a
//! code of MQTT 3.1.1 and one of MQTT 5.

/// Why something that a client did is refused. But for subscriptions, it ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Bytes that are no MQTT packet.
    #[error("malformed packet")]
    Malformed,
    /// A packet that has no place here: a second CONNECT, a server's packet, QoS 2 handshakes.
    #[error("unexpected packet")]
    Unexpected,
    /// A packet over its bound.
    #[error("packet too large")]
    Oversize,
    /// Neither MQTT 3.1.1 nor MQTT 5.
    #[error("protocol version not served")]
    Version,
    /// MQTT 5 enhanced authentication, which certificates make needless.
    #[error("authentication method not served")]
    AuthMethod,
    /// A client id that cannot be used.
    #[error("client id not valid")]
    ClientId,
    /// A client id that is not the certificate's to use.
    #[error("client id does not belong to the certificate")]
    WrongName,
    /// A certificate of a role that connects to nobody.
    #[error("role may not connect")]
    Role,
    /// More connections than are allowed.
    #[error("no room for another connection")]
    Full,
    /// A topic that is none of ours.
    #[error("not a topic of ours")]
    Topic,
    /// A topic that this client may not publish to.
    #[error("may not publish to this topic")]
    Publish,
    /// A will that the client may not publish.
    #[error("may not leave this will")]
    Will,
    /// QoS 2.
    #[error("quality of service 2 not served")]
    Qos2,
    /// A filter that is not valid.
    #[error("not a valid filter")]
    Filter,
    /// A filter that reaches beyond what this client may hear.
    #[error("may not subscribe to this filter")]
    Subscribe,
    /// More subscriptions than are allowed.
    #[error("too many subscriptions")]
    Subscriptions,
    /// An option of MQTT 5 that cannot be served.
    #[error("subscription option not served")]
    Option,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Close {
    /// The client said goodbye; `will` when it wants its will published nevertheless.
    #[error("disconnected")]
    Disconnected {
        /// Whether the will is published.
        will: bool,
    },
    /// The network connection ended or broke.
    #[error("connection lost")]
    Lost,
    /// The client broke a rule.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// Nothing came for one and a half keep-alive intervals.
    #[error("keep-alive timeout")]
    KeepAlive,
    /// Another connection has the client id now.
    #[error("taken over")]
    TakenOver,
    /// The client does not take what is sent to it.
    #[error("slow consumer")]
    Slow,
    /// The certificate was revoked while the connection lasted.
    #[error("certificate revoked")]
    Revoked,
    /// The broker stops.
    #[error("broker stops")]
    Stopping,
    /// A router is gone; the broker is about to end.
    #[error("router gone")]
    Broken,
}

/// Why nobody knows who a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// TLS failed: no certificate, another authority's, revoked, too old a TLS.
    Tls,
    /// It took too long, TLS or the CONNECT after it.
    Timeout,
    /// The certificate names nobody.
    Identity,
    /// The client went away.
    Lost,
}

impl HandshakeFailure {
    /// The failure as it stands in metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Identity => "identity",
            Self::Lost => "lost",
        }
    }
}

impl Refusal {
    /// The refusal as it stands in metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unexpected => "unexpected",
            Self::Oversize => "oversize",
            Self::Version => "version",
            Self::AuthMethod => "auth_method",
            Self::ClientId => "client_id",
            Self::WrongName => "wrong_name",
            Self::Role => "role",
            Self::Full => "full",
            Self::Topic => "topic",
            Self::Publish => "publish",
            Self::Will => "will",
            Self::Qos2 => "qos2",
            Self::Filter => "filter",
            Self::Subscribe => "subscribe",
            Self::Subscriptions => "subscriptions",
            Self::Option => "option",
        }
    }

    /// The return code of a 3.1.1 CONNACK.
    pub(crate) const fn connack_v4(self) -> u8 {
        match self {
            Self::Version => 1,
            Self::ClientId => 2,
            Self::Full => 3,
            _ => 5,
        }
    }

    /// The reason code of MQTT 5.
    pub(crate) const fn reason(self) -> u8 {
        match self {
            Self::Malformed => 0x81,
            Self::Unexpected => 0x82,
            Self::Option => 0x83,
            Self::Version => 0x84,
            Self::ClientId => 0x85,
            Self::WrongName | Self::Role | Self::Publish | Self::Will | Self::Subscribe => 0x87,
            Self::AuthMethod => 0x8C,
            Self::Filter => 0x8F,
            Self::Topic => 0x90,
            Self::Oversize => 0x95,
            Self::Full | Self::Subscriptions => 0x97,
            Self::Qos2 => 0x9B,
        }
    }
}

impl Close {
    /// The close as it stands in metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Disconnected { .. } => "disconnected",
            Self::Lost => "lost",
            Self::Refused(_) => "refused",
            Self::KeepAlive => "keep_alive",
            Self::TakenOver => "taken_over",
            Self::Slow => "slow_consumer",
            Self::Revoked => "revoked",
            Self::Stopping => "stopping",
            Self::Broken => "broken",
        }
    }

    /// Whether the client's last will is published.
    pub(crate) const fn fires_will(self) -> bool {
        match self {
            Self::Disconnected { will } => will,
            // Its bridges are being disconnected as well: nobody would hear.
            Self::Stopping | Self::Broken => false,
            Self::Lost
            | Self::Refused(_)
            | Self::KeepAlive
            | Self::TakenOver
            | Self::Slow
            | Self::Revoked => true,
        }
    }

    /// What an MQTT 5 client is sent, if anything.
    pub(crate) const fn reason(self) -> Option<u8> {
        match self {
            Self::Disconnected { .. } | Self::Lost => None,
            Self::Refused(refusal) => Some(refusal.reason()),
            Self::KeepAlive => Some(0x8D),
            Self::TakenOver => Some(0x8E),
            Self::Slow => Some(0x97),
            Self::Revoked => Some(0x87),
            Self::Stopping | Self::Broken => Some(0x8B),
        }
    }
}
