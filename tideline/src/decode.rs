//! `tideline decode`: what travels on the topics, readable.
//!
//! One line in, one JSON line out. A line that cannot be read is named on standard error and the
//! next one is read: a debugging tool must outlive what it debugs.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use clap::Args;
use daemon::{Class, Failure};
use schema::codec::{self, DecodeError};
use schema::envelope::{self, EnvelopeError};
use schema::message::{CommandRequest, DesiredConfig, Downlink, Event, Status};
use schema::topic::TopicError;
use schema::{Batch, Channel, DeviceId, Quality, SensorName, Topic, Value, limits};
use serde::Serialize;

/// Longest line that is read: a topic, a blank, and a payload of the largest size in hex.
const LINE_BYTES_MAX: usize = 2 * limits::PAYLOAD_BYTES_MAX + 1024;

/// Reads standard input.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  mosquitto_sub -h localhost -p 8883 --cafile ca.pem --cert service/observer.pem \\\n    \
                  --key service/observer.key -t 'tl/v1/#' -F '%t %x' | tideline decode"
)]
pub struct Options {
    /// Print one line a reading instead of one a batch
    #[arg(long)]
    readings: bool,
}

/// Why a line cannot be turned into JSON.
#[derive(Debug, thiserror::Error)]
enum LineError {
    #[error("line has more than {LINE_BYTES_MAX} bytes")]
    TooLong,
    #[error("line is not of the form `TOPIC HEX`; print it with mosquitto_sub -F '%t %x'")]
    Form,
    #[error(transparent)]
    Topic(#[from] TopicError),
    #[error("payload is not hexadecimal: {0}")]
    Hex(#[from] hex::FromHexError),
    #[error(transparent)]
    Batch(#[from] DecodeError),
    #[error(transparent)]
    Message(#[from] EnvelopeError),
}

/// One message, as printed.
#[derive(Debug, Serialize)]
struct Decoded<Message> {
    device: DeviceId,
    channel: Channel,
    bytes: usize,
    message: Message,
}

/// What the channels carry.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Message {
    /// An empty retained payload: the broker forgets the message.
    Cleared {
        cleared: bool,
    },
    Batch(Telemetry),
    Event(Event),
    Status(Status),
    Downlink(Downlink),
    Command(CommandRequest),
    Config(DesiredConfig),
}

#[derive(Debug, Serialize)]
struct Telemetry {
    epoch: String,
    readings: Vec<ReadingLine>,
}

#[derive(Debug, Serialize)]
struct ReadingLine {
    seq: u64,
    sensor: SensorName,
    observed_at: String,
    value: Value,
    quality: Quality,
    hlc: String,
}

/// Decodes standard input to standard output.
///
/// # Errors
/// When the input cannot be read or the output cannot be written; lines that cannot be decoded
/// only make the exit code 1.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let undecodable = decode_lines(
        options,
        &mut io::stdin().lock(),
        &mut io::stdout().lock(),
        &mut io::stderr().lock(),
    );
    match undecodable {
        Ok(0) => Ok(ExitCode::SUCCESS),
        Ok(_) => Ok(ExitCode::FAILURE),
        // The reader of our output went away, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Failure::new(Class::Data, "decode standard input").because(error)),
    }
}

/// Returns how many lines could not be decoded.
fn decode_lines(
    options: &Options,
    input: &mut impl BufRead,
    output: &mut impl Write,
    complaints: &mut impl Write,
) -> io::Result<u64> {
    let mut undecodable = 0;
    let mut line = Vec::new();
    for number in 1u64.. {
        if !read_line(input, &mut line)? {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        match decode_line(&line) {
            Ok(decoded) => write_decoded(options, decoded, output)?,
            Err(error) => {
                undecodable += 1;
                writeln!(complaints, "line {number}: {error}")?;
            }
        }
    }
    Ok(undecodable)
}

/// Reads one line into `line`, at most one byte more than allowed; the rest of a longer one is
/// passed over. Returns whether there was one.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut any = false;
    loop {
        let chunk = input.fill_buf()?;
        if chunk.is_empty() {
            return Ok(any);
        }
        any = true;
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(chunk.len(), |at| at + 1);
        let room = (LINE_BYTES_MAX + 1).saturating_sub(line.len());
        let kept = end.unwrap_or(chunk.len()).min(room);
        line.extend_from_slice(&chunk[..kept]);
        input.consume(taken);
        if end.is_some() {
            return Ok(true);
        }
    }
}

fn decode_line(line: &[u8]) -> Result<Decoded<Message>, LineError> {
    if line.len() > LINE_BYTES_MAX {
        return Err(LineError::TooLong);
    }
    let text = std::str::from_utf8(line).map_err(|_| LineError::Form)?;
    let mut words = text.split_ascii_whitespace();
    let topic: Topic = words.next().ok_or(LineError::Form)?.parse()?;
    let payload = hex::decode(words.next().unwrap_or_default())?;
    if words.next().is_some() {
        return Err(LineError::Form);
    }
    let message = match (topic.channel, payload.as_slice()) {
        (channel, []) if channel.is_retained() => Message::Cleared { cleared: true },
        (Channel::Telemetry, payload) => Message::Batch(telemetry(&codec::decode(payload)?)),
        (Channel::Event, payload) => Message::Event(envelope::decode(payload)?),
        (Channel::Status, payload) => Message::Status(envelope::decode(payload)?),
        (Channel::Ack, payload) => Message::Downlink(envelope::decode(payload)?),
        (Channel::Command, payload) => Message::Command(envelope::decode(payload)?),
        (Channel::Config, payload) => Message::Config(envelope::decode(payload)?),
    };
    Ok(Decoded {
        device: topic.device,
        channel: topic.channel,
        bytes: payload.len(),
        message,
    })
}

fn telemetry(batch: &Batch) -> Telemetry {
    let readings = batch
        .rows
        .iter()
        .map(|row| ReadingLine {
            seq: row.seq,
            sensor: batch.sensor(row).clone(),
            observed_at: schema::rfc3339(row.observed_at.micros()),
            value: row.value.clone(),
            quality: row.quality,
            hlc: row.hlc.to_string(),
        })
        .collect();
    Telemetry {
        epoch: batch.epoch.to_string(),
        readings,
    }
}

fn write_decoded(
    options: &Options,
    decoded: Decoded<Message>,
    output: &mut impl Write,
) -> io::Result<()> {
    let Decoded {
        device,
        channel,
        bytes,
        message,
    } = decoded;
    if let (true, Message::Batch(Telemetry { readings, .. })) = (options.readings, &message) {
        for message in readings {
            let line = Decoded {
                device: device.clone(),
                channel,
                bytes,
                message,
            };
            serde_json::to_writer(&mut *output, &line)?;
            output.write_all(b"\n")?;
        }
    } else {
        let line = Decoded {
            device,
            channel,
            bytes,
            message,
        };
        serde_json::to_writer(&mut *output, &line)?;
        output.write_all(b"\n")?;
    }
    // A person watches: each line at once.
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schema::{Epoch, Hlc, ObservedAt, Row};

    fn decode(readings: bool, input: &[u8]) -> (u64, String, String) {
        let (mut output, mut complaints) = (Vec::new(), Vec::new());
        let undecodable = decode_lines(
            &Options { readings },
            &mut &*input,
            &mut output,
            &mut complaints,
        )
        .unwrap();
        (
            undecodable,
            String::from_utf8(output).unwrap(),
            String::from_utf8(complaints).unwrap(),
        )
    }

    fn line(topic: &str, payload: &[u8]) -> Vec<u8> {
        format!("{topic} {}\n", hex::encode(payload)).into_bytes()
    }

    fn batch() -> Vec<u8> {
        let row = |seq, value| Row {
            sensor: 0,
            observed_at: ObservedAt::from_millis(1_700_000_000_123),
            hlc: Hlc::new(1_700_000_000_124, seq as u16),
            seq,
            quality: Quality::Good,
            value,
        };
        let batch = Batch {
            epoch: Epoch::from_random(0xABC),
            sensors: vec!["host/load".parse().unwrap()],
            rows: vec![row(1, Value::F64(0.5)), row(2, Value::F64(f64::NAN))],
        };
        let mut payload = Vec::new();
        codec::Encoder::default()
            .encode(&batch, &mut payload)
            .unwrap();
        payload
    }

    #[test]
    fn a_batch_becomes_one_line_or_one_a_reading() {
        let input = line("tl/v1/press-7/up/telemetry", &batch());
        let (undecodable, output, _) = decode(false, &input);
        assert_eq!((undecodable, output.lines().count()), (0, 1));
        assert!(output.contains(r#""observed_at":"2023-11-14T22:13:20.123Z","value":0.5"#));
        assert!(output.contains(r#""seq":2"#) && output.contains(r#""value":null"#));
        let (_, output, _) = decode(true, &input);
        assert_eq!(output.lines().count(), 2);
    }

    #[test]
    fn a_bad_line_is_named_and_the_next_is_read() {
        let mut input = b"nonsense\ntl/v1/d/up/status 01\ntl/v1/d/up/status zz\n\n".to_vec();
        let status = Status::Offline { session: 9 };
        input.extend(line(
            "tl/v1/d/up/status",
            &envelope::encode(&status).unwrap(),
        ));
        let (undecodable, output, complaints) = decode(false, &input);
        assert_eq!(undecodable, 3);
        assert!(complaints.starts_with("line 1: ") && complaints.contains("line 3: "));
        assert_eq!(
            output,
            "{\"device\":\"d\",\"channel\":\"status\",\"bytes\":4,\"message\":{\"offline\":{\"session\":9}}}\n"
        );
    }

    #[test]
    fn a_cleared_retained_message_is_no_error() {
        let (undecodable, output, _) = decode(false, b"tl/v1/d/down/config \n");
        assert_eq!(undecodable, 0);
        assert!(output.contains(r#""cleared":true"#));
    }

    #[test]
    fn a_line_is_bounded() {
        for (bytes, form) in [
            (LINE_BYTES_MAX - 1, true),
            (LINE_BYTES_MAX, true),
            (LINE_BYTES_MAX + 1, false),
        ] {
            let mut input = vec![b'x'; bytes];
            input.push(b'\n');
            let (undecodable, _, complaints) = decode(false, &input);
            assert_eq!(undecodable, 1);
            assert_eq!(complaints.contains("topic is not"), form, "{complaints}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(input in prop::collection::vec(any::<u8>(), 0..300)) {
            decode(false, &input);
            for channel in Channel::ALL {
                decode(true, &line(&format!("tl/v1/d/{}", channel.suffix()), &input));
            }
        }
    }
}
