//! The batch codec beside JSON and postcard rows: bytes and nanoseconds a reading.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use daemon::{Class, Failure};
use schema::codec::{Encoder, decode};
use schema::{Batch, Row, Value};
use serde::{Deserialize, Serialize};

use super::Figure;
use super::dataset::Dataset;

/// Batch sizes that are measured: a full batch, and what a slow source fills within its linger.
const BATCH_ROWS: [usize; 2] = [500, 50];

/// For how long each operation is repeated, and how often: the fastest round counts.
const ROUND: Duration = Duration::from_millis(60);
const ROUNDS: usize = 5;

/// A reading as a row of plain postcard, with everything that must travel.
#[derive(Debug, Serialize, Deserialize)]
struct PlainRow {
    sensor: String,
    observed_at: i64,
    hlc: u64,
    seq: u64,
    quality: u8,
    value: PlainValue,
}

#[derive(Debug, Serialize, Deserialize)]
enum PlainValue {
    F64(f64),
    I64(i64),
    Bool(bool),
    Text(String),
}

/// Measures the codec on each file, or on a generated machine when none is given, and on sensors
/// whose values were f32.
pub(crate) fn run(files: &[PathBuf], mut emit: impl FnMut(Figure)) -> Result<(), Failure> {
    let mut datasets = if files.is_empty() {
        vec![Dataset::generated()]
    } else {
        files
            .iter()
            .map(|path| Dataset::read(path))
            .collect::<Result<_, _>>()?
    };
    datasets.push(Dataset::noisy_singles());
    for dataset in &datasets {
        for rows in BATCH_ROWS {
            let batches = dataset.batches(rows);
            if batches.is_empty() {
                return Err(Failure::new(
                    Class::Configuration,
                    format!(
                        "measure {}: it has fewer than {rows} readings",
                        dataset.name
                    ),
                ));
            }
            measure(&dataset.name, rows, &batches, &mut emit)?;
        }
    }
    Ok(())
}

fn measure(
    name: &str,
    rows: usize,
    batches: &[Batch],
    emit: &mut impl FnMut(Figure),
) -> Result<(), Failure> {
    let readings = (rows * batches.len()) as f64;
    let plain: Vec<Vec<PlainRow>> = batches.iter().map(plain_rows).collect();
    let failed = |error: String| Failure::new(Class::Data, format!("encode {name}")).because(error);

    let mut encoder = Encoder::default();
    let mut payloads = Vec::new();
    for batch in batches {
        let mut payload = Vec::new();
        encoder
            .encode(batch, &mut payload)
            .map_err(|error| failed(error.to_string()))?;
        let decoded = decode(&payload).map_err(|error| failed(error.to_string()))?;
        let same = decoded.rows.iter().zip(&batch.rows).all(|(back, row)| {
            // Names come back in the order of their first appearance.
            let sensor = row.sensor;
            let back_row = Row {
                sensor,
                ..back.clone()
            };
            decoded.sensor(back) == batch.sensor(row) && back_row == *row
        });
        if !same || decoded.rows.len() != batch.rows.len() {
            return Err(failed("a batch came back changed".to_owned()));
        }
        payloads.push(payload);
    }
    let plain_payloads = plain
        .iter()
        .map(postcard::to_stdvec)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(error.to_string()))?;
    let bytes =
        |payloads: &[Vec<u8>]| payloads.iter().map(Vec::len).sum::<usize>() as f64 / readings;
    let json_bytes = plain
        .iter()
        .map(|rows| serde_json::to_vec(rows).map_or(0, |json| json.len()))
        .sum::<usize>() as f64
        / readings;
    let (ours, postcard_rows) = (bytes(&payloads), bytes(&plain_payloads));
    let figure = |what: &str| format!("codec/{name}/{rows}/{what}");
    emit(Figure::beside(
        figure("bytes"),
        ours,
        "B/reading",
        "postcard rows",
        postcard_rows,
    ));
    emit(Figure::beside(
        figure("bytes_to_json"),
        ours,
        "B/reading",
        "JSON",
        json_bytes,
    ));

    let (mut buffer, mut plain_buffer) = (Vec::new(), Vec::new());
    let [ours, reference] = fastest(
        || {
            for batch in batches {
                // Checked above: these batches encode.
                let _ = encoder.encode(black_box(batch), &mut buffer);
                black_box(&buffer);
            }
        },
        || {
            for rows in &plain {
                let bytes = std::mem::take(&mut plain_buffer);
                // Rows of numbers and texts always serialize.
                if let Ok(mut bytes) = postcard::to_extend(black_box(rows), bytes) {
                    black_box(&bytes);
                    bytes.clear();
                    plain_buffer = bytes;
                }
            }
        },
    );
    emit(Figure::beside(
        figure("encode"),
        ours / readings,
        "ns/reading",
        "postcard rows",
        reference / readings,
    ));
    let [ours, reference] = fastest(
        || {
            for payload in &payloads {
                let _ = black_box(decode(black_box(payload)));
            }
        },
        || {
            for payload in &plain_payloads {
                let _ = black_box(postcard::from_bytes::<Vec<PlainRow>>(black_box(payload)));
            }
        },
    );
    emit(Figure::beside(
        figure("decode"),
        ours / readings,
        "ns/reading",
        "postcard rows",
        reference / readings,
    ));
    Ok(())
}

/// Nanoseconds of one run of each, the fastest of rounds that alternate between them.
fn fastest(mut ours: impl FnMut(), mut reference: impl FnMut()) -> [f64; 2] {
    let mut best = [f64::INFINITY; 2];
    for _ in 0..ROUNDS {
        best[0] = best[0].min(round(&mut ours));
        best[1] = best[1].min(round(&mut reference));
    }
    best
}

fn round(run: &mut impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut runs = 0u32;
    while start.elapsed() < ROUND {
        run();
        runs += 1;
    }
    start.elapsed().as_nanos() as f64 / f64::from(runs)
}

fn plain_rows(batch: &Batch) -> Vec<PlainRow> {
    batch
        .rows
        .iter()
        .map(|row| PlainRow {
            sensor: batch.sensor(row).to_string(),
            observed_at: row.observed_at.micros(),
            hlc: row.hlc.bits(),
            seq: row.seq,
            quality: row.quality.into(),
            value: match &row.value {
                Value::F64(number) => PlainValue::F64(*number),
                Value::I64(number) => PlainValue::I64(*number),
                Value::Bool(truth) => PlainValue::Bool(*truth),
                Value::Text(text) => PlainValue::Text(text.to_string()),
            },
        })
        .collect()
}
