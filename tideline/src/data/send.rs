//! `tideline data send`: readings from a file, as a device would hand them in. The database takes
//! each (epoch, sequence) once: the same file may be sent again.

use std::fs;
use std::io::Read;
use std::path::{Path as FilePath, PathBuf};

use api::Endpoint as _;
use api::readings::{NewReadings, SendReadings};
use clap::Args;
use daemon::{Class, Failure};
use schema::{DeviceId, Epoch};
use serde_json::{Value, json};

use crate::output;
use crate::session::{Outcome, Session, verdict};

/// Readings of one request.
const CHUNK: usize = 500;

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

pub(super) const HELP: &str = "The file holds what the API takes, or its readings alone: a JSON array, or one object a line.\n  \
     {\"epoch\": \"0123456789ab\", \"first_seq\": 1, \"readings\": [\n    \
     {\"sensor\": \"temperature\", \"observed_at\": \"2026-01-31T08:00:00Z\", \"value\": 21.5}]}\n\n\
     Readings alone get a new epoch, which is printed: with --epoch the same file can be sent again, and nothing doubles.\n\n\
     Examples:\n  \
     tideline data send press-7 readings.json\n  \
     some-program | tideline data send press-7 -";

#[derive(Debug, Args)]
pub(super) struct Send {
    /// The device
    device: DeviceId,
    /// JSON file; - is standard input
    file: PathBuf,
    /// Identity of the device's buffer, for readings alone; a new one when left out
    #[arg(long, value_name = "EPOCH")]
    epoch: Option<String>,
    /// Number of the first reading, for readings alone; 1 when left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    first_seq: Option<u64>,
    /// In what numbers for observed_at count, when the file does not say; microseconds when nothing does
    #[arg(long, value_name = "UNIT", value_parser = ["s", "ms", "us", "ns"])]
    timestamp_unit: Option<String>,
}

/// What a file holds.
#[derive(Debug)]
struct Understood {
    epoch: String,
    first_seq: u64,
    timestamp_unit: Option<String>,
    readings: Vec<Value>,
}

pub(super) async fn run(send: &Send, session: &mut Session) -> Outcome {
    let text = read(&send.file)?;
    let Understood {
        epoch,
        first_seq: first,
        timestamp_unit,
        readings,
    } = send.understand(&text)?;
    let api = session.api()?;
    let mut committed = Vec::new();
    let mut refused = Vec::new();
    let mut seq = first;
    for chunk in readings.chunks(CHUNK) {
        let request = SendReadings::at(super::of(&send.device)).body(NewReadings {
            epoch: epoch.clone(),
            first_seq: Some(seq),
            timestamp_unit: timestamp_unit.clone(),
            readings: chunk.to_vec(),
        });
        let asked = api.ask(&request).await.inspect_err(|_| {
            if seq > first {
                eprintln!("readings before {seq} were taken: nothing is lost by sending all again with --epoch {epoch}");
            }
        });
        let answer = asked.map_err(|failure| match hinted_unit(&failure.to_string()) {
            Some(unit) if timestamp_unit.is_none() => {
                failure.help(format!("--timestamp-unit {unit} says so"))
            }
            _ => failure,
        })?;
        let taken = answer.body()?;
        committed.extend(taken.committed);
        // A bridge of 0.1 has the older word alone.
        refused.extend(match taken.refused.is_empty() {
            true => taken.rejected,
            false => taken.refused,
        });
        seq += chunk.len() as u64;
    }
    let all = json!({ "epoch": epoch, "committed": committed, "refused": refused });
    if !session.print_json(&all) {
        let taken = readings.len() - refused.len().min(readings.len());
        output::print(&format!(
            "in the database: {taken} of {} (epoch {epoch})",
            output::many(readings.len() as u64, "reading")
        ));
        for reading in &refused {
            let reason = output::plain(&reading.reason);
            output::print(&format!("refused: {} {reason}", reading.seq));
        }
    }
    Ok(verdict(refused.is_empty()))
}

impl Send {
    fn understand(&self, text: &str) -> Result<Understood, Failure> {
        let wrong = |reason: String| {
            Failure::new(
                Class::Configuration,
                format!("understand {}", self.file.display()),
            )
            .because(reason)
            .help("`tideline data send --help` shows the form")
        };
        let readings = match serde_json::from_str(text) {
            Ok(Value::Array(readings)) => readings,
            Ok(Value::Object(mut whole)) if whole.contains_key("readings") => {
                let Some(Value::Array(readings)) = whole.remove("readings") else {
                    return Err(wrong("its readings are no array".to_owned()));
                };
                if self.epoch.is_some() || self.first_seq.is_some() {
                    return Err(wrong(
                        "it has an epoch and sequences of its own: --epoch and --first-seq are for readings alone"
                            .to_owned(),
                    ));
                }
                let epoch = whole.get("epoch").and_then(Value::as_str);
                let first = whole.get("first_seq").and_then(Value::as_u64);
                let (Some(epoch), Some(first)) = (epoch, first) else {
                    return Err(wrong("it lacks epoch or first_seq".to_owned()));
                };
                let unit = whole.get("timestamp_unit").and_then(Value::as_str);
                let unit = unit.map_or(self.timestamp_unit.clone(), |unit| Some(unit.to_owned()));
                let understood = Understood {
                    epoch: epoch.to_owned(),
                    first_seq: first,
                    timestamp_unit: unit,
                    readings,
                };
                return bounded(understood, wrong);
            }
            // One object a line; one line alone is an object too.
            _ => text
                .lines()
                .filter(|line| !line.trim().is_empty())
                .map(serde_json::from_str)
                .collect::<Result<Vec<Value>, _>>()
                .map_err(|error| wrong(format!("it is no JSON: {error}")))?,
        };
        let epoch = match &self.epoch {
            Some(epoch) => epoch.clone(),
            None => new_epoch(),
        };
        let understood = Understood {
            epoch,
            first_seq: self.first_seq.unwrap_or(1),
            timestamp_unit: self.timestamp_unit.clone(),
            readings,
        };
        bounded(understood, wrong)
    }
}

fn bounded(
    understood: Understood,
    wrong: impl Fn(String) -> Failure,
) -> Result<Understood, Failure> {
    let count = understood.readings.len() as u64;
    if count == 0 {
        return Err(wrong("it holds no reading".to_owned()));
    }
    if understood.first_seq.checked_add(count).is_none() {
        return Err(wrong("first_seq is too high".to_owned()));
    }
    Ok(understood)
}

fn read(file: &FilePath) -> Result<String, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Class::Configuration, format!("read {}", file.display())).because(error)
    };
    let mut text = String::new();
    let mut limited: Box<dyn Read> = match file.as_os_str() == "-" {
        true => Box::new(std::io::stdin().take(FILE_BYTES_MAX + 1)),
        false => Box::new(
            fs::File::open(file)
                .map_err(failed)?
                .take(FILE_BYTES_MAX + 1),
        ),
    };
    limited.read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(std::io::Error::other(format!(
            "it is longer than {FILE_BYTES_MAX} bytes"
        ))));
    }
    Ok(text)
}

/// The unit that a bridge names, in the words of its body.
fn hinted_unit(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("timestamp_unit = \"")?;
    rest.split_once('"').map(|(unit, _)| unit)
}

fn new_epoch() -> String {
    Epoch::from_random(rand::random()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send() -> Send {
        Send {
            device: "press-7".parse().unwrap(),
            file: "readings.json".into(),
            epoch: Some("00000000000a".to_owned()),
            first_seq: Some(5),
            timestamp_unit: Some("ms".to_owned()),
        }
    }

    /// For a file that says itself which readings it holds.
    fn plain_send() -> Send {
        Send {
            epoch: None,
            first_seq: None,
            ..send()
        }
    }

    #[test]
    fn each_form_of_a_file_is_understood() {
        let whole = r#"{"epoch":"00000000000b","first_seq":2,"readings":[{"sensor":"a"}]}"#;
        let understand_by = |send: Send, text: &str| {
            let found = send.understand(text).unwrap();
            let unit = found.timestamp_unit.unwrap();
            (found.epoch, found.first_seq, found.readings.len(), unit)
        };
        let with = |epoch: &str, first, count, unit: &str| {
            (epoch.to_owned(), first, count, unit.to_owned())
        };
        let understand = |text: &str| understand_by(send(), text);
        let understand_whole = |text: &str| understand_by(plain_send(), text);
        assert_eq!(understand_whole(whole), with("00000000000b", 2, 1, "ms"));
        let in_seconds = whole.replace("\"readings\"", "\"timestamp_unit\":\"s\",\"readings\"");
        assert_eq!(
            understand_whole(&in_seconds),
            with("00000000000b", 2, 1, "s")
        );
        for text in ["[{\"sensor\":\"a\"},{}]", "{\"sensor\":\"a\"}\n\n{}\n"] {
            assert_eq!(understand(text), with("00000000000a", 5, 2, "ms"));
        }
        assert_eq!(
            understand("{\"sensor\":\"a\"}"),
            with("00000000000a", 5, 1, "ms")
        );
    }

    #[test]
    fn what_is_no_file_of_readings_is_refused() {
        for text in [
            "",
            "[]",
            "x",
            "{\"readings\": 1}",
            "{\"readings\": [{}]}",
            "{\"epoch\":\"1\",\"first_seq\":18446744073709551615,\"readings\":[{}]}",
        ] {
            assert!(plain_send().understand(text).is_err(), "{text}");
        }
        // Two epochs of one file: which is meant is nobody's to guess.
        let whole = r#"{"epoch":"00000000000b","first_seq":2,"readings":[{"sensor":"a"}]}"#;
        for (epoch, first_seq) in [(Some("00000000000a".to_owned()), None), (None, Some(5))] {
            let send = Send {
                epoch,
                first_seq,
                ..send()
            };
            let failure = send.understand(whole).unwrap_err();
            assert_eq!(failure.exit_code(), 2);
            assert!(failure.to_string().contains("--first-seq"), "{failure}");
        }
    }

    #[test]
    fn a_unit_that_a_bridge_names_is_found() {
        let said = "400: body: 1782907200 looks like seconds; timestamp_unit = \"s\" says so";
        assert_eq!(hinted_unit(said), Some("s"));
        assert_eq!(hinted_unit("400: no"), None);
    }

    #[test]
    fn a_new_epoch_is_one() {
        assert_ne!(new_epoch(), new_epoch());
    }
}
