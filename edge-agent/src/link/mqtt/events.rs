//! The packets of one connection: rumqttc's state and codec on a stream of our own. rumqttc's own event loop resolves, connects and
//! encrypts by itself, and neither counts bytes nor tries a second address in time; what it does between packets is done here in
//! its way: a ping each keep-alive, no publish more than the broker may have unconfirmed, and a bound on every write.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt as _};
use rumqttc::{
    Codec, Connect, ConnectReturnCode, Event, MqttState, Packet, PingReq, Request, StateError,
    mqttbytes,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::codec::Framed;

use super::{PACKET_BYTES_MAX, PUBLISHES_MAX};

/// How long the broker may take nothing of what is written to it.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the broker closed the connection")]
    Closed,
    #[error("{0}")]
    Io(#[source] io::Error),
    #[error("the broker takes nothing any more")]
    WriteTimeout,
    #[error("the broker did not answer a ping")]
    Silent,
    #[error("the broker refused the connection")]
    Refused(ConnectReturnCode),
    #[error("the broker does not keep to MQTT: {0}")]
    Protocol(#[source] Box<StateError>),
}

/// A connection from its CONNECT on.
pub(super) struct Events<S> {
    framed: Framed<S, Codec>,
    state: MqttState,
    requests: mpsc::Receiver<Request>,
    keep_alive: Duration,
    write_timeout: Duration,
    ping: Pin<Box<Sleep>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Events<S> {
    /// Sends CONNECT and waits for CONNACK; bounded by the caller.
    pub(super) async fn connect(
        stream: S,
        connect: Connect,
        requests: mpsc::Receiver<Request>,
        write_timeout: Duration,
    ) -> Result<Self, Broken> {
        let keep_alive = Duration::from_secs(u64::from(connect.keep_alive));
        let codec = Codec {
            max_incoming_size: PACKET_BYTES_MAX,
            max_outgoing_size: PACKET_BYTES_MAX,
        };
        let mut framed = Framed::new(stream, codec);
        framed.send(Packet::Connect(connect)).await?;
        match framed.next().await {
            Some(Ok(Packet::ConnAck(answer))) if answer.code == ConnectReturnCode::Success => {}
            Some(Ok(Packet::ConnAck(answer))) => return Err(Broken::Refused(answer.code)),
            Some(Ok(_)) => return Err(StateError::WrongPacket.into()),
            Some(Err(error)) => return Err(error.into()),
            None => return Err(Broken::Closed),
        }
        Ok(Self {
            framed,
            state: MqttState::new(PUBLISHES_MAX, false),
            requests,
            keep_alive,
            write_timeout,
            ping: Box::pin(sleep(keep_alive)),
        })
    }

    /// The next event. May be dropped at any await: what was to be written is written by the next call.
    pub(super) async fn poll(&mut self) -> Result<Event, Broken> {
        loop {
            if let Some(event) = self.state.events.pop_front() {
                return Ok(event);
            }
            if !self.framed.write_buffer().is_empty() {
                self.flush().await?;
            }
            let has_room = self.state.inflight() < PUBLISHES_MAX && self.state.collision.is_none();
            let answer = tokio::select! {
                packet = self.framed.next() => match packet.ok_or(Broken::Closed)?? {
                    Packet::Disconnect => return Err(Broken::Closed),
                    packet => self.state.handle_incoming_packet(packet)?,
                },
                Some(request) = self.requests.recv(), if has_room => {
                    self.state.handle_outgoing_packet(request)?
                }
                () = &mut self.ping => {
                    self.ping.as_mut().reset(Instant::now() + self.keep_alive);
                    self.state.handle_outgoing_packet(Request::PingReq(PingReq))?
                }
            };
            if let Some(packet) = answer {
                // Bounded: all of it is flushed before the next.
                packet.write(self.framed.write_buffer_mut(), PACKET_BYTES_MAX)?;
                self.flush().await?;
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        match timeout(
            self.write_timeout,
            SinkExt::<Packet>::flush(&mut self.framed),
        )
        .await
        {
            Ok(flushed) => Ok(flushed?),
            Err(_) => Err(Broken::WriteTimeout),
        }
    }
}

impl From<mqttbytes::Error> for Broken {
    fn from(error: mqttbytes::Error) -> Self {
        match error {
            mqttbytes::Error::Io(error) => Self::Io(error),
            error => StateError::Deserialization(error).into(),
        }
    }
}

impl From<StateError> for Broken {
    fn from(error: StateError) -> Self {
        match error {
            StateError::AwaitPingResp => Self::Silent,
            StateError::ConnectionAborted => Self::Closed,
            StateError::Io(error) => Self::Io(error),
            error => Self::Protocol(Box::new(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use rumqttc::{ConnAck, Publish, QoS};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    /// A broker's end that has taken the connection, and ours.
    async fn connected() -> (
        Framed<DuplexStream, Codec>,
        Events<DuplexStream>,
        mpsc::Sender<Request>,
    ) {
        let (near, far) = tokio::io::duplex(4096);
        let codec = Codec {
            max_incoming_size: PACKET_BYTES_MAX,
            max_outgoing_size: PACKET_BYTES_MAX,
        };
        let mut far = Framed::new(far, codec);
        let (requests, queue) = mpsc::channel(100);
        let accept = async {
            assert!(matches!(far.next().await, Some(Ok(Packet::Connect(_)))));
            let accepted = ConnAck::new(ConnectReturnCode::Success, false);
            far.send(Packet::ConnAck(accepted)).await.unwrap();
        };
        let mut connect = Connect::new("d");
        connect.keep_alive = 1;
        let connecting = Events::connect(near, connect, queue, Duration::from_millis(500));
        let (events, ()) = tokio::join!(connecting, accept);
        (far, events.unwrap(), requests)
    }

    #[tokio::test]
    async fn a_broker_that_does_not_answer_a_ping_is_gone() {
        let (mut far, mut events, _requests) = connected().await;
        assert!(matches!(events.poll().await, Ok(Event::Outgoing(_))));
        assert!(matches!(far.next().await, Some(Ok(Packet::PingReq))));
        assert!(matches!(events.poll().await, Err(Broken::Silent)));
    }

    #[tokio::test]
    async fn a_broker_that_reads_nothing_is_given_up() {
        let (_far, mut events, requests) = connected().await;
        let publish = Publish::new("t", QoS::AtLeastOnce, vec![0; 10_000]);
        requests.try_send(Request::Publish(publish)).unwrap();
        assert!(matches!(events.poll().await, Err(Broken::WriteTimeout)));
    }

    #[tokio::test]
    async fn no_more_publishes_are_sent_than_may_be_unconfirmed() {
        let (mut far, mut events, requests) = connected().await;
        for _ in 0..=PUBLISHES_MAX {
            let publish = Publish::new("t", QoS::AtLeastOnce, "x");
            requests.try_send(Request::Publish(publish)).unwrap();
        }
        let mut first = None;
        for _ in 0..PUBLISHES_MAX {
            assert!(matches!(events.poll().await, Ok(Event::Outgoing(_))));
            let Some(Ok(Packet::Publish(publish))) = far.next().await else {
                panic!("no publish");
            };
            first.get_or_insert(publish.pkid);
        }
        let more = timeout(Duration::from_millis(200), events.poll()).await;
        assert!(more.is_err(), "{more:?}");
        far.send(Packet::PubAck(rumqttc::PubAck::new(first.unwrap())))
            .await
            .unwrap();
        assert!(matches!(events.poll().await, Ok(Event::Incoming(_))));
        assert!(matches!(events.poll().await, Ok(Event::Outgoing(_))));
        assert!(matches!(far.next().await, Some(Ok(Packet::Publish(_)))));
    }

    #[tokio::test]
    async fn what_is_no_mqtt_ends_the_connection() {
        let (near, mut far) = tokio::io::duplex(4096);
        let (_requests, queue) = mpsc::channel(1);
        let answer = async {
            let mut head = [0; 4];
            far.read_exact(&mut head).await.unwrap();
            far.write_all(&[0xFF; 16]).await.unwrap();
        };
        let connecting = Events::connect(near, Connect::new("d"), queue, WRITE_TIMEOUT);
        let (events, ()) = tokio::join!(connecting, answer);
        assert!(matches!(events.err(), Some(Broken::Protocol(_))));
    }
}
