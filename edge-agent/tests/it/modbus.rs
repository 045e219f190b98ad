//! The `modbus` source against devices of another make, pymodbus: over TCP, and over a serial line.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use edge_agent::Settings;
use edge_agent::source::SourceState;
use schema::{Quality, Value};
use tempfile::TempDir;
use testkit::port::free_port;
use testkit::process::Guard;

use crate::eventually;
use crate::trial::Trial;

/// Devices, and the folder in which they are told what to do.
struct Devices {
    server: Guard,
    folder: TempDir,
    /// `tcp` and its port, or `serial`.
    way: Vec<String>,
}

impl Devices {
    async fn tcp() -> Self {
        Self::start(&["tcp", &free_port().to_string()]).await
    }

    async fn start(way: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let way: Vec<String> = way.iter().map(|one| (*one).to_owned()).collect();
        let server = spawn(folder.path(), &way);
        let devices = Self {
            server,
            folder,
            way,
        };
        devices.until_ready().await;
        devices
    }

    async fn until_ready(&self) {
        eventually("the devices are ready", || self.path("ready").exists()).await;
        std::fs::remove_file(self.path("ready")).unwrap();
    }

    /// Kills them, and starts them anew.
    async fn restart(&mut self) {
        self.server.kill();
        self.server = spawn(self.folder.path(), &self.way);
        self.until_ready().await;
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn set(&self, name: &str) {
        std::fs::write(self.path(name), "").unwrap();
    }

    fn unset(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    /// The line of settings that says where they are.
    fn link(&self) -> String {
        match &self.way[..] {
            [kind, port] => {
                let framing = if kind == "rtu" {
                    "\nframing = \"rtu\""
                } else {
                    ""
                };
                format!("tcp = \"127.0.0.1:{port}\"{framing}")
            }
            _ => format!("serial = {:?}\nparity = \"none\"", self.path("line")),
        }
    }
}

/// Python with pymodbus, where `cargo xtask test` installs it: below the build's own folder.
fn python() -> PathBuf {
    let running = std::env::current_exe().unwrap();
    let target = running.ancestors().nth(3).unwrap();
    let python = target.join("modbus-venv/bin/python");
    assert!(
        python.is_file(),
        "{} is missing; run the tests through `cargo xtask test`",
        python.display()
    );
    python
}

fn spawn(folder: &Path, way: &[String]) -> Guard {
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/modbus/server.py");
    let mut command = Command::new(python());
    command.arg(server).arg(folder).args(way);
    Guard::spawn(command.stdin(Stdio::null()))
}

fn point(sensor: &str, lines: &str) -> String {
    format!("[[source.trial.point]]\nsensor = {sensor:?}\n{lines}\n")
}

/// Every type at its address within the block of an order, and what it must be read as.
fn types() -> Vec<(&'static str, u16, &'static str, Value)> {
    vec![
        ("u16", 0, "", Value::I64(0xFF01)),
        ("i16", 1, "", Value::I64(-2)),
        ("u32", 2, "", Value::I64(0xFFFF_FFFE)),
        ("i32", 4, "", Value::I64(-123_456)),
        ("u64", 6, "", Value::I64((1 << 62) + 1)),
        ("i64", 10, "", Value::I64(i64::MIN)),
        ("f32", 14, "", Value::F64(5.09)),
        ("f64", 16, "", Value::F64(-1e-7)),
        ("string", 20, "length = 5", Value::Text("Größe 12".into())),
        ("bit", 25, "bit = 0", Value::Bool(true)),
        ("bit", 25, "bit = 1", Value::Bool(false)),
        ("bit", 25, "bit = 15", Value::Bool(true)),
    ]
}

const ORDERS: [&str; 4] = ["ABCD", "DCBA", "swapped-words", "swapped-bytes"];

/// Reads everything that the devices have, and checks it.
async fn reads_everything(devices: &Devices) {
    let mut settings = format!(
        "{}\ninterval = \"100ms\"\ntimeout = \"5s\"\n",
        devices.link()
    );
    let mut expected = Vec::new();
    for (block, order) in (0u16..).zip(ORDERS) {
        for (kind, address, more, value) in types() {
            let sensor = format!("{order}/{kind}/{more}");
            let address = 100 * block + address;
            // The words of a text are in their order in every device.
            let order = match (kind, order) {
                ("string", "DCBA") => "swapped-bytes",
                ("string", "swapped-words") => "big",
                _ => order,
            };
            let lines = format!("address = {address}\ntype = {kind:?}\norder = {order:?}\n{more}");
            settings += &point(&sensor, &lines);
            expected.push((sensor, value));
        }
    }
    for (sensor, lines, value) in [
        (
            "scaled",
            "address = 0\ntable = \"input\"\ntype = \"i16\"\nscale = 0.1\noffset = -40",
            Value::F64(25.5),
        ),
        (
            "printed",
            "address = \"30002\"\ntype = \"f32\"",
            Value::F64(5.09),
        ),
        (
            "exact",
            "address = 1\ntable = \"input\"\ntype = \"f32\"\nexact = true",
            Value::F64(f64::from(5.09f32)),
        ),
        ("coil/0", "address = 0\ntable = \"coil\"", Value::Bool(true)),
        (
            "coil/1",
            "address = 1\ntable = \"coil\"",
            Value::Bool(false),
        ),
        ("coil/9", "address = \"00010\"", Value::Bool(true)),
        (
            "discrete/15",
            "address = 15\ntable = \"discrete\"",
            Value::Bool(true),
        ),
        (
            "discrete/16",
            "address = 16\ntable = \"discrete\"",
            Value::Bool(false),
        ),
        ("last", "address = 65535\ntype = \"u16\"", Value::I64(9)),
        (
            "unit/2",
            "address = 0\nunit_id = 2\ntype = \"u16\"",
            Value::I64(22),
        ),
        (
            "unit/3",
            "address = 0\nunit_id = 3\ntable = \"input\"\ntype = \"u16\"",
            Value::I64(33),
        ),
    ] {
        settings += &point(sensor, lines);
        expected.push((sensor.to_owned(), value));
    }
    // More than one request holds.
    for at in 0..300i64 {
        let sensor = format!("many/{at}");
        settings += &point(&sensor, &format!("address = {}\ntype = \"u16\"", 600 + at));
        expected.push((sensor, Value::I64(at)));
    }
    let trial = Trial::start("modbus", &settings).await;
    let (last, value) = expected.last().unwrap();
    trial.until_good(last, value.clone()).await;
    for (sensor, value) in expected {
        assert_eq!(
            trial.readings(&sensor)[0],
            (value, Quality::Good),
            "{sensor}"
        );
    }
    assert_eq!(trial.state(), (SourceState::Running, String::new()));
}

#[tokio::test]
async fn every_type_in_every_order_is_read_over_tcp() {
    reads_everything(&Devices::tcp().await).await;
}

#[tokio::test]
async fn every_type_in_every_order_is_read_over_a_serial_line() {
    reads_everything(&Devices::start(&["serial"]).await).await;
}

#[tokio::test]
async fn every_type_in_every_order_is_read_through_a_converter() {
    reads_everything(&Devices::start(&["rtu", &free_port().to_string()]).await).await;
}

/// Three neighbours of which the second is missing, one that fails now and then, and other units.
fn troubled(link: &str) -> String {
    let register = |sensor, address, unit_id| {
        point(
            sensor,
            &format!("address = {address}\nunit_id = {unit_id}\ntype = \"u16\""),
        )
    };
    format!(
        "{link}\ninterval = \"50ms\"\ntimeout = \"200ms\"\nbackoff_max = \"1s\"\n{}{}{}{}{}{}",
        register("before", 401, 1),
        register("missing", 402, 1),
        register("behind", 403, 1),
        register("failing", 500, 1),
        register("unit/2", 0, 2),
        register("unit/3", 0, 3),
    )
}

#[tokio::test]
async fn a_register_that_is_missing_hides_none_of_its_neighbours() {
    let devices = Devices::tcp().await;
    let trial = Trial::start("modbus", &troubled(&devices.link())).await;
    trial.until_good("before", Value::I64(4_001)).await;
    trial.until_good("behind", Value::I64(4_003)).await;
    trial.until_good("unit/3", Value::I64(33)).await;
    assert_eq!(
        trial.readings("missing"),
        [],
        "it has no value that could be bad"
    );
    let (state, error) = trial.state();
    assert_eq!(state, SourceState::Failing);
    assert!(
        error.contains("1 of 6 points are bad; missing (unit 1, holding 402): exception 2"),
        "{error}"
    );
}

/// Checks that a reading turns bad with its last value while something lasts, is said once, and is good again after.
async fn turns_bad(devices: &Devices, trouble: &str, sensor: &str, value: i64) {
    let trial = Trial::start("modbus", &troubled(&devices.link())).await;
    let value = Value::I64(value);
    trial.until_good(sensor, value.clone()).await;
    devices.set(trouble);
    let bad = Some((value.clone(), Quality::Bad));
    eventually("it is bad", || trial.last(sensor) == bad).await;
    // All others are read on, many times.
    let other = trial.readings("unit/3").len();
    eventually("the others are read", || {
        trial.readings("unit/3").len() > other + 5
    })
    .await;
    let all = trial.readings(sensor);
    let said = all.iter().filter(|one| Some(*one) == bad.as_ref()).count();
    assert_eq!(said, 1);
    devices.unset(trouble);
    trial.until_good(sensor, value).await;
}

#[tokio::test]
async fn an_exception_is_a_bad_reading() {
    turns_bad(&Devices::tcp().await, "failing", "failing", 7).await;
}

#[tokio::test]
async fn a_unit_that_stops_answering_stops_no_other_over_tcp() {
    turns_bad(&Devices::tcp().await, "silent-2", "unit/2", 22).await;
}

#[tokio::test]
async fn a_unit_that_stops_answering_stops_no_other_on_a_line() {
    turns_bad(&Devices::start(&["serial"]).await, "silent-2", "unit/2", 22).await;
}

#[tokio::test]
async fn a_server_that_stops_answering_and_one_that_is_gone_are_read_again_when_they_are_back() {
    let mut devices = Devices::tcp().await;
    let trial = Trial::start("modbus", &troubled(&devices.link())).await;
    let sensors = [("before", 4_001), ("unit/2", 22), ("unit/3", 33)];
    let all_are = async |quality| {
        for (sensor, value) in sensors {
            let wanted = Some((Value::I64(value), quality));
            eventually(&format!("{sensor} is {quality:?}"), || {
                trial.last(sensor) == wanted
            })
            .await;
        }
    };
    all_are(Quality::Good).await;
    devices.set("mute");
    all_are(Quality::Bad).await;
    let (state, error) = trial.state();
    assert_eq!(state, SourceState::Failing);
    assert!(error.contains("does not answer"), "{error}");
    devices.unset("mute");
    all_are(Quality::Good).await;

    devices.server.kill();
    all_are(Quality::Bad).await;
    eventually("it is said why", || {
        trial.state().1.contains("cannot connect to")
    })
    .await;
    devices.restart().await;
    all_are(Quality::Good).await;
}

#[tokio::test]
async fn what_is_no_number_is_counted_and_not_taken() {
    let devices = Devices::tcp().await;
    let settings = format!(
        "{}\ninterval = \"50ms\"\n{}{}",
        devices.link(),
        point("broken", "address = 510\ntype = \"f32\""),
        point("well", "address = 500\ntype = \"u16\""),
    );
    let trial = Trial::start("modbus", &settings).await;
    trial.until_good("well", Value::I64(7)).await;
    let refused = "tideline_agent_readings_refused_total{reason=\"not_finite\"}";
    eventually("it is counted each time", || trial.edge.metric(refused) > 2).await;
    assert_eq!(trial.readings("broken"), []);
    let (_, error) = trial.state();
    assert!(
        error.contains("broken (unit 1, holding 510): it is not a finite number"),
        "{error}"
    );
}

#[tokio::test]
async fn a_line_belongs_to_one() {
    let devices = Devices::start(&["serial"]).await;
    let line = point("unit/2", "address = 0\nunit_id = 2\ntype = \"u16\"");
    let settings = format!("{}\ninterval = \"50ms\"\n{line}", devices.link());
    let first = Trial::start("modbus", &settings).await;
    first.until_good("unit/2", Value::I64(22)).await;
    let second = Trial::start("modbus", &settings).await;
    eventually("the second is told", || {
        second.state().1.contains("another program has it")
    })
    .await;
    let count = first.readings("unit/2").len();
    eventually("the first reads on", || {
        first.readings("unit/2").len() > count
    })
    .await;
    first.edge.stop().await;
    second.until_good("unit/2", Value::I64(22)).await;
}

#[tokio::test]
async fn points_have_intervals_of_their_own() {
    let devices = Devices::tcp().await;
    let settings = format!(
        "{}\ninterval = \"30s\"\n{}{}",
        devices.link(),
        point("slow", "address = 500\ntype = \"u16\""),
        point("fast", "address = 401\ntype = \"u16\"\ninterval = \"50ms\""),
    );
    let trial = Trial::start("modbus", &settings).await;
    eventually("the fast one is read", || trial.readings("fast").len() > 10).await;
    assert_eq!(trial.readings("slow").len(), 1);
}

#[tokio::test]
async fn a_dead_band_leaves_out_values_and_not_that_they_are_bad() {
    let devices = Devices::tcp().await;
    let point = point("failing", "address = 500\ntype = \"u16\"");
    let settings = format!(
        "{}\ninterval = \"50ms\"\ndead_band = 1e18\n{point}",
        devices.link()
    );
    let trial = Trial::start("modbus", &settings).await;
    let seven = |quality| (Value::I64(7), quality);
    trial.until_good("failing", Value::I64(7)).await;
    devices.set("failing");
    eventually("it is bad", || trial.readings("failing").len() == 2).await;
    devices.unset("failing");
    eventually("it is good", || trial.readings("failing").len() == 3).await;
    let good = seven(Quality::Good);
    assert_eq!(
        trial.readings("failing"),
        [good.clone(), seven(Quality::Bad), good]
    );
}

#[tokio::test]
async fn a_check_names_a_line_that_is_missing_and_tells_of_one_that_is_in_use() {
    let devices = Devices::start(&["serial"]).await;
    let source = |line: &Path| {
        let path = devices.path("agent.toml");
        let point = point("unit/2", "address = 0\nunit_id = 2\ntype = \"u16\"");
        let text = format!("[source.trial]\nkind = \"modbus\"\nserial = {line:?}\n{point}");
        std::fs::write(&path, text).unwrap();
        Settings::load_sources(&path).unwrap().remove(0).source
    };
    let line = devices.path("line");
    let well = source(&line).check().await.unwrap();
    assert_eq!(well, format!("1 point of {} at 19200 baud", line.display()));
    let settings = format!(
        "{}\n{}",
        devices.link(),
        point("a", "address = 0\ntype = \"u16\"")
    );
    let trial = Trial::start("modbus", &settings).await;
    trial.until_good("a", Value::I64(0xFF01)).await;
    let in_use = source(&line).check().await.unwrap();
    let other = "(not now: another program has it, or another source of this agent)";
    assert!(in_use.ends_with(other), "{in_use}");
    let missing = source(&devices.path("missing")).check().await.unwrap_err();
    assert_eq!(missing.exit_code(), 2);
    assert!(
        missing
            .to_string()
            .contains("missing at 19200 baud: No such file"),
        "{missing}"
    );
}
