//! The `replay` source, with a real recording.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use edge_agent::source::SourceState;
use schema::{Quality, Value};

use crate::eventually;
use crate::trial::Trial;

/// Forty minutes of a room, a row a minute: see the README beside it.
fn recording() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/replay/occupancy.csv")
}

/// A file with this text, and its folder.
fn file(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("past.csv");
    std::fs::write(&path, text).unwrap();
    let line = format!("path = {path:?}");
    (folder, line)
}

#[tokio::test]
async fn a_recording_is_played_in_its_order_and_at_its_pace() {
    let begun = Instant::now();
    // 39 minutes in some two seconds.
    let settings = format!("path = {:?}\nspeed = 1200", recording());
    let trial = Trial::start("replay", &settings).await;
    let co2 = "bldg2/floor1/room101/co2";
    eventually("all of it is played", || trial.readings(co2).len() == 40).await;
    assert!(
        begun.elapsed() >= Duration::from_millis(1_950),
        "{:?}",
        begun.elapsed()
    );
    eventually("it has no more", || trial.state().0 == SourceState::Stopped).await;

    let text = std::fs::read_to_string(recording()).unwrap();
    let column = |place: usize| -> Vec<String> {
        let cells = text.lines().skip(1).map(|row| row.split(',').nth(place));
        cells.map(|cell| cell.unwrap().to_owned()).collect()
    };
    let numbers = |place| -> Vec<(Value, Quality)> {
        let cells = column(place).into_iter();
        cells
            .map(|cell| (Value::F64(cell.parse().unwrap()), Quality::Good))
            .collect()
    };
    assert_eq!(
        trial.readings("bldg2/floor1/room101/temperature"),
        numbers(0)
    );
    assert_eq!(trial.readings(co2), numbers(3));
    let occupied = trial.readings("bldg2/floor1/room101/occupied");
    assert_eq!(
        occupied[0],
        (Value::Bool(column(5)[0] == "1"), Quality::Good)
    );
    // Each row has the time at which it was played.
    let times: Vec<i64> = {
        let heard = trial.bridge.heard();
        let rows = heard.rows.values().filter(|(name, _)| name == co2);
        rows.map(|(_, row)| row.observed_at.micros()).collect()
    };
    let apart = times.windows(2).map(|two| two[1] - two[0]);
    assert!(apart.clone().all(|apart| apart > 0), "{times:?}");
    assert!(times[39] - times[0] >= 1_900_000, "{times:?}");
}

#[tokio::test]
async fn a_loop_begins_anew_and_recorded_times_stay() {
    let (_folder, path) = file("time,a\n1767225600000,1\n1767225600010,2\n1767225600030,3\n");
    let trial = Trial::start("replay", &format!("{path}\nloop = true")).await;
    eventually("it begins anew", || trial.readings("a").len() >= 9).await;
    let values: Vec<Value> = trial.readings("a").into_iter().map(|one| one.0).collect();
    for (at, value) in values.iter().enumerate() {
        assert_eq!(*value, Value::F64((at % 3 + 1) as f64));
    }

    let recorded = Trial::start("replay", &format!("{path}\ntimes = \"recorded\"")).await;
    eventually("it is played", || recorded.readings("a").len() == 3).await;
    let heard = recorded.bridge.heard();
    let times: Vec<i64> = heard
        .rows
        .values()
        .map(|(_, row)| row.observed_at.micros() / 1000)
        .collect();
    assert_eq!(
        times,
        [1_767_225_600_000, 1_767_225_600_010, 1_767_225_600_030]
    );
}

#[tokio::test]
async fn what_cannot_be_read_of_a_file_is_counted_and_the_rest_is_played() {
    let long = "x".repeat(300 * 1024);
    let text = format!(
        "sensor,time,value,quality\na,1,1,\na,noon,2,\na,3\na,4,NaN,\n{long},5,5,\na,6,6,bad\n,7,7,\n"
    );
    let (_folder, path) = file(&text);
    let trial = Trial::start("replay", &path).await;
    eventually("it is played", || trial.state().0 == SourceState::Stopped).await;
    eventually("it arrives", || trial.readings("a").len() == 2).await;
    let bad = (Value::F64(6.0), Quality::Bad);
    assert_eq!(trial.readings("a"), [(Value::F64(1.0), Quality::Good), bad]);
    let refused = |reason| {
        let name = format!("tideline_agent_readings_refused_total{{reason=\"{reason}\"}}");
        trial.edge.metric(&name)
    };
    assert_eq!(refused("bad_time"), 1);
    assert_eq!(refused("not_finite"), 1);
    assert_eq!(refused("bad_sensor_name"), 1);
    assert_eq!(refused("malformed"), 2);
}

#[tokio::test]
async fn a_file_that_cannot_be_played_is_said_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("past.csv");
    let trial = Trial::start("replay", &format!("path = {path:?}")).await;
    let fails = async |reason: &str| {
        eventually(reason, || {
            let (state, error) = trial.state();
            state == SourceState::Failing && error.contains(reason)
        })
        .await;
    };
    fails("No such file").await;
    std::fs::write(&path, "").unwrap();
    fails("the file is empty").await;
    std::fs::write(&path, "a,b\n1,2\n").unwrap();
    fails("the header has no column of times").await;
    std::fs::write(&path, "time,a\n").unwrap();
    fails("it has no row that can be read").await;
    std::fs::write(&path, "time,a\n5,7\n").unwrap();
    trial.until_good("a", Value::F64(7.0)).await;
}
