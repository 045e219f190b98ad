//! The handshake in MQTT: from the first byte after TLS to the client's place, or to its refusal.

use std::sync::Arc;

use bytes::BytesMut;
use certs::{Identity, Role, Serial};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::outgoing::farewell;
use super::{Front, READ_BYTES_MIN};
use crate::error::{Close, HandshakeFailure, Refusal};
use crate::rules;
use crate::seats::{Kick, Seat};
use crate::shared::Core;
use crate::wills::Will;
use crate::wire::{self, Connect, Version, Writer};

/// Whom the TLS handshake has shown.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) identity: Identity,
    pub(crate) serial: Serial,
}

/// Serves a client whose TLS handshake is done until its connection ends. `handshaking` is
/// given back once the client is in, or refused.
pub(crate) async fn serve<S>(
    core: Arc<Core>,
    stream: S,
    peer: Peer,
    deadline: Instant,
    handshaking: OwnedSemaphorePermit,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (reader, writer) = tokio::io::split(stream);
    let mut lobby = Lobby {
        core: &core,
        peer: &peer,
        reader,
        writer,
        inbuf: BytesMut::new(),
    };
    let admitted = tokio::select! {
        () = core.stopping.cancelled() => return,
        admitted = tokio::time::timeout_at(deadline, lobby.admit()) => admitted,
    };
    let admitted = match admitted {
        Ok(Ok(admitted)) => admitted,
        Ok(Err(NotAdmitted::Lost)) => {
            core.meters.handshake_failed(HandshakeFailure::Lost);
            return;
        }
        Ok(Err(NotAdmitted::Refused(version, refusal))) => {
            core.note_refusal(&peer.identity, refusal, "connection refused");
            lobby.refuse(version, refusal).await;
            return;
        }
        Err(_) => {
            core.meters.handshake_failed(HandshakeFailure::Timeout);
            return;
        }
    };
    let Lobby {
        reader,
        writer,
        inbuf,
        ..
    } = lobby;
    drop(handshaking);
    let front = Front::new(core, peer, admitted, reader, writer, inbuf);
    // Most of a connection's memory would otherwise lie in the state of the handshake too.
    Box::pin(front.run()).await;
}

/// Why a client does not come in.
enum NotAdmitted {
    Refused(Version, Refusal),
    Lost,
}

/// A client before it is let in.
struct Lobby<'a, S> {
    core: &'a Arc<Core>,
    peer: &'a Peer,
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    inbuf: BytesMut,
}

/// What a client that is let in has.
pub(super) struct Admitted {
    pub(super) connect: Connect,
    pub(super) client_id: String,
    pub(super) will: Option<Will>,
    pub(super) seat: Seat,
    pub(super) kick: Arc<Kick>,
    pub(super) room: OwnedSemaphorePermit,
}

impl<S> Lobby<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    async fn admit(&mut self) -> Result<Admitted, NotAdmitted> {
        let mut connect = self.connect().await?;
        let refused = |refusal| NotAdmitted::Refused(connect.version, refusal);
        let identity = &self.peer.identity;
        rules::connect(identity).map_err(refused)?;
        rules::client_id(identity, &connect.client_id).map_err(refused)?;
        if connect.client_id.is_empty() && !connect.clean {
            return Err(refused(Refusal::ClientId));
        }
        let will = connect
            .will
            .take()
            .map(|raw| Will::admit(identity, raw))
            .transpose()
            .map_err(|refusal| NotAdmitted::Refused(connect.version, refusal))?;
        let client_id = match (identity.role, connect.client_id.as_str()) {
            (Role::Device, "") => identity.name.to_string(),
            (_, "") => format!("{}.auto-{}", identity.name, self.core.next_number()),
            (_, id) => id.to_owned(),
        };
        let kick = Arc::new(Kick::new(self.peer.serial.clone()));
        let client = (identity.name.clone(), client_id.clone());
        let seat = self.core.seats.take(client, Arc::clone(&kick)).await;
        // The list, or the broker's state, may have changed since the handshake: whoever has a
        // seat is told of later changes.
        if self.core.tls.is_revoked(&self.peer.serial) {
            kick.kick(Close::Revoked);
        }
        if self.core.stopping.is_cancelled() {
            kick.kick(Close::Stopping);
        }
        let Some(room) = self.core.room(identity.role) else {
            return Err(NotAdmitted::Refused(connect.version, Refusal::Full));
        };
        Ok(Admitted {
            connect,
            client_id,
            will,
            seat,
            kick,
            room,
        })
    }

    async fn connect(&mut self) -> Result<Connect, NotAdmitted> {
        loop {
            match wire::connect(&self.inbuf) {
                Ok(Some((connect, bytes))) => {
                    let _ = self.inbuf.split_to(bytes);
                    return Ok(connect);
                }
                Ok(None) => {}
                Err((version, refusal)) => return Err(NotAdmitted::Refused(version, refusal)),
            }
            self.inbuf.reserve(READ_BYTES_MIN);
            match self.reader.read_buf(&mut self.inbuf).await {
                Ok(0) | Err(_) => return Err(NotAdmitted::Lost),
                Ok(_) => {}
            }
        }
    }

    async fn refuse(mut self, version: Version, refusal: Refusal) {
        let mut out = BytesMut::new();
        Writer(version).refused(refusal, &mut out);
        farewell(&mut self.reader, &mut self.writer, &out).await;
    }
}
