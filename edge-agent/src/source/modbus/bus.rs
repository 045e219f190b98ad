//! The connection to a bus, and one request at a time on it: the only file that names tokio-modbus.
//!
//! A request that was not answered in time ends the connection. Its answer may still come, and nothing in a frame
//! of a serial line tells it from that of the next request.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_modbus::client::{Client as _, Context, rtu, tcp};
use tokio_modbus::slave::{Slave, SlaveContext as _};
use tokio_modbus::{Error, ProtocolError, Request as Function, Response};

use super::plan::Table;
use super::rounds::{Answer, Request};
use super::serial::{Line, Mode8};

/// How long a connection may take to come about.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// Where the devices are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// A device, or a gateway, in the network.
    Tcp {
        /// `host:port`.
        address: String,
        /// Whether frames are those of a serial line, behind a converter that knows nothing of the protocol.
        rtu: bool,
    },
    /// A serial line.
    Serial {
        /// Its device file.
        path: PathBuf,
        /// How bytes travel.
        mode: Mode8,
    },
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { address, .. } => f.write_str(address),
            Self::Serial { path, mode } => write!(f, "{} at {} baud", path.display(), mode.baud),
        }
    }
}

impl Link {
    /// The silence between two frames, by which the devices of a line know where one begins: 3.5 bytes of 11 bits, and
    /// from 19,200 baud on 1.75 ms.
    fn silence(&self) -> Duration {
        match self {
            Self::Serial { mode, .. } if mode.baud < 19_200 => {
                Duration::from_secs_f64(3.5 * 11.0 / f64::from(mode.baud.max(1)))
            }
            Self::Serial { .. } => Duration::from_micros(1_750),
            Self::Tcp { .. } => Duration::ZERO,
        }
    }
}

/// A bus.
pub(super) struct Bus {
    link: Link,
    /// Longest wait for an answer.
    patience: Duration,
    /// Shortest time between two requests.
    pause: Duration,
    context: Option<Context>,
    quiet_until: Option<Instant>,
}

impl Bus {
    pub(super) fn new(link: Link, patience: Duration, pause: Duration) -> Self {
        let pause = pause.max(link.silence());
        Self {
            link,
            patience,
            pause,
            context: None,
            quiet_until: None,
        }
    }

    /// Opens the connection when there is none.
    pub(super) async fn connect(&mut self) -> io::Result<()> {
        if self.context.is_some() {
            return Ok(());
        }
        self.context = Some(match &self.link {
            Link::Serial { path, mode } => rtu::attach(Line::open(path, *mode)?),
            Link::Tcp { address, rtu } => {
                let stream = timeout(CONNECT_TIME_MAX, TcpStream::connect(address))
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
                // A request is one small packet that is waited for.
                stream.set_nodelay(true)?;
                if *rtu {
                    rtu::attach(stream)
                } else {
                    tcp::attach(stream)
                }
            }
        });
        Ok(())
    }

    /// Sends a request and waits for what comes of it.
    pub(super) async fn ask(&mut self, request: Request) -> Answer {
        if let Err(error) = self.connect().await {
            return Answer::Unreachable(format!("cannot connect to {}: {error}", self.link));
        }
        let Some(context) = &mut self.context else {
            return Answer::Unreachable("no connection".to_owned());
        };
        if let Some(until) = self.quiet_until {
            sleep_until(until).await;
        }
        context.set_slave(Slave(request.unit_id));
        let outcome = timeout(self.patience, context.call(function(request))).await;
        self.quiet_until = Some(Instant::now() + self.pause);
        let answer = match outcome {
            Err(_) => Answer::Silent,
            Ok(outcome) => answer(request, outcome),
        };
        if !matches!(
            answer,
            Answer::Registers(_) | Answer::Bits(_) | Answer::Exception(_)
        ) {
            self.context = None;
        }
        answer
    }
}

fn function(request: Request) -> Function<'static> {
    let Request {
        table,
        address,
        count,
        ..
    } = request;
    match table {
        Table::Coil => Function::ReadCoils(address, count),
        Table::Discrete => Function::ReadDiscreteInputs(address, count),
        Table::Input => Function::ReadInputRegisters(address, count),
        Table::Holding => Function::ReadHoldingRegisters(address, count),
    }
}

fn answer(request: Request, outcome: tokio_modbus::Result<Response>) -> Answer {
    let wanted = usize::from(request.count);
    match outcome {
        Ok(Ok(
            Response::ReadHoldingRegisters(registers) | Response::ReadInputRegisters(registers),
        )) if registers.len() == wanted => Answer::Registers(registers),
        // Bits come in whole bytes.
        Ok(Ok(Response::ReadCoils(mut bits) | Response::ReadDiscreteInputs(mut bits)))
            if bits.len() == wanted.next_multiple_of(8) =>
        {
            bits.truncate(wanted);
            Answer::Bits(bits)
        }
        Ok(Ok(_)) => Answer::Garbled(format!("the answer does not hold {wanted} values")),
        Ok(Err(exception)) => Answer::Exception(exception.into()),
        Err(Error::Protocol(ProtocolError::HeaderMismatch { .. })) => {
            Answer::Garbled("the answer is one to another request".to_owned())
        }
        Err(Error::Protocol(ProtocolError::FunctionCodeMismatch { .. })) => {
            Answer::Garbled("the answer is one to another function".to_owned())
        }
        Err(Error::Transport(error)) if error.kind() == io::ErrorKind::InvalidData => {
            Answer::Garbled(format!("the answer is no frame: {error}"))
        }
        // The library reports the last error of the system when a peer just closes.
        Err(Error::Transport(error)) if matches!(error.raw_os_error(), Some(0 | 11)) => {
            Answer::Broken("the device closed the connection".to_owned())
        }
        Err(Error::Transport(error)) => Answer::Broken(format!("the connection broke: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::serial::Parity;
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_modbus::ExceptionCode;

    fn request(table: Table, count: u16) -> Request {
        Request {
            unit_id: 1,
            table,
            address: 7,
            count,
        }
    }

    #[test]
    fn an_answer_holds_what_was_asked_for_or_is_none() {
        let holding = |registers: usize| {
            let response = Response::ReadHoldingRegisters(vec![3; registers]);
            answer(request(Table::Holding, 2), Ok(Ok(response)))
        };
        assert!(matches!(holding(1), Answer::Garbled(_)));
        assert_eq!(holding(2), Answer::Registers(vec![3, 3]));
        assert!(matches!(holding(3), Answer::Garbled(_)));
        let coils = |bits: usize| {
            let response = Response::ReadCoils(vec![true; bits]);
            answer(request(Table::Coil, 9), Ok(Ok(response)))
        };
        assert!(matches!(coils(8), Answer::Garbled(_)));
        assert_eq!(coils(16), Answer::Bits(vec![true; 9]));
        assert!(matches!(coils(24), Answer::Garbled(_)));
        let refused = answer(
            request(Table::Coil, 1),
            Ok(Err(ExceptionCode::GatewayTargetDevice)),
        );
        assert_eq!(refused, Answer::Exception(0x0B));
    }

    #[test]
    fn frames_of_a_line_are_apart() {
        let at = |baud| {
            let mode = Mode8 {
                baud,
                parity: Parity::None,
                stop_bits: 1,
            };
            let path = PathBuf::new();
            Link::Serial { path, mode }.silence()
        };
        assert_eq!(at(9_600).as_micros(), 4_010);
        assert_eq!(at(19_200).as_micros(), 1_750);
        assert_eq!(at(115_200).as_micros(), 1_750);
    }

    /// What comes of a request for two holding registers from address 7 of unit 1, of which the device sends this.
    async fn told(frames: &'static [&'static [u8]], rtu: bool) -> Answer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let device = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 64];
            let _ = stream.read(&mut request).await;
            for frame in frames {
                let _ = stream.write_all(frame).await;
                // Apart on the wire, too.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if frames.is_empty() {
                // It keeps the connection, and says nothing.
                let _ = stream.read(&mut request).await;
            }
        });
        let link = Link::Tcp { address, rtu };
        let mut bus = Bus::new(link, Duration::from_millis(200), Duration::ZERO);
        let answer = bus.ask(request(Table::Holding, 2)).await;
        let is_kept = matches!(answer, Answer::Registers(_) | Answer::Exception(_));
        assert_eq!(bus.context.is_some(), is_kept, "{answer:?}");
        drop(bus);
        device.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn what_a_device_sends_is_an_answer_or_none() {
        const GOOD: &[u8] = &[0, 0, 0, 0, 0, 7, 1, 3, 4, 0, 5, 0, 6];
        assert_eq!(told(&[GOOD], false).await, Answer::Registers(vec![5, 6]));
        let parted: &[&[u8]] = &[&[0, 0, 0, 0, 0], &[7, 1, 3, 4, 0, 5, 0, 6]];
        assert_eq!(told(parted, false).await, Answer::Registers(vec![5, 6]));
        assert_eq!(
            told(&[&[0, 0, 0, 0, 0, 3, 1, 0x83, 2]], false).await,
            Answer::Exception(2)
        );
        assert_eq!(told(&[], false).await, Answer::Silent);
        let garbled: [&[&[u8]]; 7] = [
            // Another transaction, unit, function, protocol, number of registers, half a register, no length.
            &[&[0, 9, 0, 0, 0, 7, 1, 3, 4, 0, 5, 0, 6]],
            &[&[0, 0, 0, 0, 0, 7, 2, 3, 4, 0, 5, 0, 6]],
            &[&[0, 0, 0, 0, 0, 7, 1, 4, 4, 0, 5, 0, 6]],
            &[&[0, 0, 0, 9, 0, 7, 1, 3, 4, 0, 5, 0, 6]],
            &[&[0, 0, 0, 0, 0, 5, 1, 3, 2, 0, 5]],
            &[&[0, 0, 0, 0, 0, 6, 1, 3, 3, 0, 5, 0]],
            &[&[0, 0, 0, 0, 0, 0, 1]],
        ];
        for frames in garbled {
            let answer = told(frames, false).await;
            assert!(
                matches!(answer, Answer::Garbled(_)),
                "{frames:?}: {answer:?}"
            );
        }
        let broken: [&[&[u8]]; 2] = [&[&[0, 0, 0]], &[&[0, 0, 0, 0, 0xFF, 0xFF, 1, 3, 4]]];
        for frames in broken {
            let answer = told(frames, false).await;
            assert!(
                matches!(answer, Answer::Broken(_)),
                "{frames:?}: {answer:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_damaged_frame_of_a_line_is_none() {
        const GOOD: &[u8] = &[1, 3, 4, 0, 5, 0, 6, 0x6A, 0x30];
        assert_eq!(told(&[GOOD], true).await, Answer::Registers(vec![5, 6]));
        // Noise before it is passed over.
        assert_eq!(
            told(&[&[0xFF], GOOD], true).await,
            Answer::Registers(vec![5, 6])
        );
        let damaged = told(&[&[1, 3, 4, 0, 5, 0, 7, 0x6A, 0x30]], true).await;
        assert!(
            matches!(
                damaged,
                Answer::Garbled(_) | Answer::Broken(_) | Answer::Silent
            ),
            "{damaged:?}"
        );
    }
}
