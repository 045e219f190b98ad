//! Settings files: the shipped example, and what is wrong with others.

use std::path::Path;

use edge_agent::Settings;
use tempfile::TempDir;

use crate::broker::{certificates, foreign_certificates};

/// The text in a folder that has the certificates where the shipped example looks for them.
fn load(text: &str) -> Result<Settings, String> {
    let folder = certificates_in("certs");
    let path = folder.path().join("agent.toml");
    std::fs::write(&path, text).unwrap();
    Settings::load(&path).map_err(|failure| {
        assert_eq!(failure.exit_code(), 2);
        failure.to_string()
    })
}

fn certificates_in(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let place = |from: &Path, to: &str| {
        let to = folder.path().join(name).join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    };
    let tls = &certificates().device;
    place(&tls.ca, "ca.pem");
    place(&tls.cert, "device/press-7.pem");
    place(&tls.key, "device/press-7.key");
    place(&certificates().bridge.cert, "bridge.pem");
    place(&certificates().bridge.key, "bridge.key");
    place(&foreign_certificates().device.key, "foreign.key");
    folder
}

const EXAMPLE: &str = include_str!("../../agent.toml");

#[test]
fn the_shipped_example_is_valid() {
    let settings = load(EXAMPLE).unwrap();
    assert_eq!(settings.agent.link.device.as_str(), "press-7");
    assert_eq!(settings.agent.link.brokers[0].host, "broker.example.com");
    let sources = &settings.agent.sources;
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    assert_eq!(names, ["host", "socket"]);
    let shown = format!("{:?}", sources[1].source);
    let folder = std::env::temp_dir();
    let from = format!("Unix({folder:?}").trim_end_matches('"').to_owned();
    assert!(shown.contains(&from), "{shown} starts at the file's folder");
    assert!(shown.contains("timestamp_unit: Millis"), "{shown}");
}

#[test]
fn the_defaults_that_the_example_shows_are_the_defaults() {
    let shown: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(setting) if setting.contains(" = ") && !setting.contains("{") => setting,
            _ => line,
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    let (shown, defaults) = (load(&shown).unwrap(), load(EXAMPLE).unwrap());
    assert_eq!(shown.agent.session, defaults.agent.session);
    assert_eq!(shown.agent.link.keep_alive, defaults.agent.link.keep_alive);
    assert_eq!(shown.agent.link.backoff, defaults.agent.link.backoff);
    let of_link = |settings: &Settings| {
        let (link, rules) = (&settings.agent.link, &settings.agent.link_rules);
        (link.prefer_first_after, link.connect_timeout, rules.clone())
    };
    assert_eq!(of_link(&shown), of_link(&defaults));
    let sources = |settings: &Settings| {
        let mut sources = settings.agent.sources.clone();
        // Its path is in a folder of this test.
        sources.pop();
        format!("{sources:?}")
    };
    assert_eq!(sources(&shown), sources(&defaults));
    assert_eq!(shown.admin, defaults.admin);
    let settings = |settings: &Settings| {
        let mut buffer = settings.agent.buffer.clone();
        buffer.path = "buffer.db".into();
        // What is left out follows from the others.
        let (rows, bytes) = buffer.quarantine_max();
        (buffer.quarantine_rows_max, buffer.quarantine_bytes_max) = (Some(rows), Some(bytes));
        buffer
    };
    assert_eq!(settings(&shown), settings(&defaults));
    assert_eq!(shown.log.level, defaults.log.level);
}

#[test]
fn all_problems_are_told_at_once() {
    let text = EXAMPLE
        .replace("# device = \"press-7\"", "device = \"press 7\"")
        .replace("broker.example.com:8883", "::1:8883")
        .replace("certs/ca.pem", "certs/none.pem")
        .replace("# batch_rows_max = 500", "batch_rows_max = 0")
        .replace("# rows_max = 1_000_000", "rows_max = 0")
        .replace("interval = \"10s\"", "interval = \"1ms\"")
        .replace("unix = \"agent.sock\"", "tcp = \"0.0.0.0:9465\"");
    let error = load(&text).unwrap_err();
    for key in [
        "device",
        "mqtt.address",
        "tls.ca",
        "session.batch_rows_max",
        "buffer",
        "source.host.interval",
        "source.socket.tcp",
    ] {
        assert!(error.contains(&format!(": {key} ")), "{key} in\n{error}");
    }
}

#[test]
fn unknown_keys_are_named() {
    let error = load(&EXAMPLE.replace("[admin]", "[admin]\nport = 1")).unwrap_err();
    assert!(error.contains("admin.port is not a known key"), "{error}");
}

#[test]
fn a_certificate_must_be_this_devices() {
    for (change, to, key) in [
        ("# device = \"press-7\"", "device = \"press-8\"", "device"),
        ("certs/device/press-7.pem", "certs/bridge.pem", "tls.key"),
        ("certs/device/press-7.key", "certs/foreign.key", "tls.key"),
    ] {
        let error = load(&EXAMPLE.replace(change, to)).unwrap_err();
        assert!(error.contains(&format!(": {key} ")), "{key} in\n{error}");
    }
    let bridge = EXAMPLE
        .replace("certs/device/press-7.pem", "certs/bridge.pem")
        .replace("certs/device/press-7.key", "certs/bridge.key");
    let error = load(&bridge).unwrap_err();
    assert!(error.contains("role is bridge"), "{error}");
}

#[test]
fn limits_hold_at_their_values() {
    for (setting, value, valid) in [
        ("batch_rows_max = 500", "1", true),
        ("batch_rows_max = 500", "4096", true),
        ("batch_rows_max = 500", "4097", false),
        ("batch_bytes_max = 65_536", "4095", false),
        ("batch_bytes_max = 65_536", "4096", true),
        ("batch_bytes_max = 65_536", "262144", true),
        ("batch_bytes_max = 65_536", "262145", false),
        ("window_batches = 4", "0", false),
        ("window_batches = 4", "1", true),
        ("window_batches = 4", "32", true),
        ("window_batches = 4", "33", false),
        ("window_bytes = 262_144", "65536", true),
        ("window_bytes = 262_144", "65535", false),
        ("history_rows_per_second = 2_000", "0", false),
        ("history_rows_per_second = 2_000", "1", true),
        ("bytes_per_second = 10_000", "0", false),
        ("bytes_per_second = 10_000", "999", false),
        ("bytes_per_second = 10_000", "1000", true),
        ("dead_band = 0.01", "0.0", true),
        ("dead_band = 0.01", "1e18", true),
        ("dead_band = 0.01", "1.1e18", false),
        ("dead_band = 0.01", "-0.1", false),
        ("dead_band = 0.01", "nan", false),
        ("report_interval = \"60s\"", "\"1s\"", true),
        ("report_interval = \"60s\"", "\"999ms\"", false),
        ("ack_timeout_min = \"1s\"", "\"10ms\"", true),
        ("ack_timeout_min = \"1s\"", "\"9ms\"", false),
        ("ack_timeout_min = \"1s\"", "\"6s\"", false),
        ("keep_alive = \"30s\"", "\"5s\"", true),
        ("keep_alive = \"30s\"", "\"4s\"", false),
        ("keep_alive = \"30s\"", "\"5500ms\"", false),
        ("backoff_first = \"500ms\"", "\"9ms\"", false),
        ("backoff_first = \"500ms\"", "\"31s\"", false),
    ] {
        let (key, _) = setting.split_once(" = ").unwrap();
        let text = EXAMPLE
            .replace(&format!("# {setting}"), &format!("{key} = {value}"))
            .replace(&format!("#{setting}"), &format!("{key} = {value}"));
        assert_ne!(text, EXAMPLE, "{setting} is not in the example");
        assert_eq!(load(&text).is_ok(), valid, "{key} = {value}");
    }
}

#[test]
fn commands_have_their_bounds() {
    let with =
        |line: &str| load(&EXAMPLE.replace("[commands]\n", &format!("[commands]\n{line}\n")));
    let exec = |program: &str, timeout: &str| {
        with(&format!(
            "exec.x = {{ program = {program:?}, timeout = {timeout:?} }}"
        ))
    };
    let good = with("parallel = 8\nexec.x = { program = \"/bin/sh\", args = [\"-c\", \"\"] }");
    let good = good.unwrap().agent.commands;
    assert_eq!((good.parallel, good.exec["x"].args.len()), (8, 2));
    assert!(with("parallel = 1").is_ok());
    for timeout in ["1s", "1day"] {
        assert!(exec("/bin/sh", timeout).is_ok(), "{timeout}");
    }
    for (wrong, key) in [
        (with("parallel = 0"), "commands.parallel"),
        (with("parallel = 9"), "commands.parallel"),
        (exec("/bin/sh", "999ms"), "commands.exec.x.timeout"),
        (exec("/bin/sh", "86401s"), "commands.exec.x.timeout"),
        (exec("/no/such/program", "1s"), "/no/such/program"),
    ] {
        let error = wrong.unwrap_err();
        assert!(error.contains(key), "{key}: {error}");
    }
}

#[test]
fn the_socket_has_a_path_of_its_own() {
    for (path, valid) in [
        ("agent.sock", true),
        ("buffer.db", false),
        ("buffer.db-wal", false),
        ("buffer.db.lock", false),
        ("buffer.db.reserve", false),
        ("certs/ca.pem", false),
        ("buffer.db.sock", true),
    ] {
        let text = EXAMPLE.replace("unix = \"agent.sock\"", &format!("unix = {path:?}"));
        let loaded = load(&text);
        assert_eq!(loaded.is_ok(), valid, "{path}");
        if let Err(error) = loaded {
            assert!(error.contains("source.socket.unix "), "{error}");
        }
    }
}

#[test]
fn what_is_wanted_of_sensors_is_read_and_checked() {
    use edge_agent::buffer::{Policy, Priority};
    let with = |lines: &str| {
        let text = EXAMPLE.replace(
            "path = \"buffer.db\"",
            &format!("path = \"buffer.db\"\n{lines}"),
        );
        assert_ne!(text, EXAMPLE);
        load(
            &(text
                + "\n[[buffer.rule]]\nsensor = \"vibration/*\"\nwhen_full = \"consolidate\"\nage_max = \"7d\"\npriority = \"history\"\n"),
        )
    };
    let settings = with("age_max = \"30d\"\nwarn_at = 0.9")
        .unwrap()
        .agent
        .buffer;
    let day = std::time::Duration::from_secs(86_400);
    let found = |sensor: &str| {
        let (of, name) = (&settings.policies, sensor.parse().unwrap());
        (of.of(&name), of.age_max(&name), of.priority(&name))
    };
    let (alarm, history) = (Priority::Alarm, Priority::History);
    assert_eq!(
        found("alarm/a"),
        (Policy::DropNewest, Some(30 * day), alarm)
    );
    assert_eq!(
        found("vibration/x"),
        (Policy::Consolidate, Some(7 * day), history)
    );
    assert!((settings.warn_at - 0.9).abs() < f64::EPSILON);
    for (lines, problem) in [
        ("warn_at = 1.5", "warn_at is 1.5"),
        ("age_max = \"10ms\"", "age_max is 10ms"),
        ("age_max = \"soon\"", "age_max"),
        ("when_full = \"average\"", "consolidate"),
    ] {
        let error = with(lines).unwrap_err();
        assert!(error.contains(problem), "{lines}: {error}");
    }
    let silent = EXAMPLE.replace("when_full = \"drop-newest\"\npriority = \"alarm\"\n", "");
    assert_ne!(silent, EXAMPLE);
    let error = load(&silent).unwrap_err();
    assert!(
        error.contains("buffer.rule[0]") && error.contains("says nothing"),
        "{error}"
    );
}

#[test]
fn the_unit_of_times_is_one_of_four() {
    for (unit, valid) in [
        ("s", true),
        ("ms", true),
        ("us", true),
        ("ns", true),
        ("m", false),
    ] {
        let text = EXAMPLE.replace(
            "# timestamp_unit = \"ms\"",
            &format!("timestamp_unit = {unit:?}"),
        );
        assert_ne!(text, EXAMPLE);
        assert_eq!(load(&text).is_ok(), valid, "{unit}");
    }
    let text = EXAMPLE.replace("# when_full = \"drop-oldest\"", "when_full = \"never\"");
    let settings = load(&text).unwrap();
    let sensor = "any".parse().unwrap();
    let policy = settings.agent.buffer.policies.of(&sensor);
    assert_eq!(policy, edge_agent::buffer::Policy::Never);
}

/// The example with other lines in its sections `[mqtt]` and `[link]`.
fn with_link(mqtt: &str, link: &str) -> String {
    EXAMPLE
        .replace("address = \"broker.example.com:8883\"", mqtt)
        .replace("\n[link]\n", &format!("\n[link]\n{link}\n"))
}

#[test]
fn several_brokers_quiet_hours_and_a_budget_are_read() {
    let mqtt =
        "addresses = [\"a:1\", \"[2001:db8::1]:8883\", \"::2\"]\nprefer_first_after = \"0s\"";
    let link = "quiet = [\"22:00-06:00\"]\nutc_offset = \"+02:00\"\nbudget = \"1.5 GB\"\nday = 28\nat_limit = \"stop\"";
    let settings = load(&with_link(mqtt, link)).unwrap();
    let link = &settings.agent.link;
    let brokers: Vec<String> = link.brokers.iter().map(ToString::to_string).collect();
    assert_eq!(brokers, ["a:1", "[2001:db8::1]:8883", "[::2]:8883"]);
    assert_eq!(link.prefer_first_after, None);
    let rules = &settings.agent.link_rules;
    assert!(rules.quiet.is_some() && !rules.quiet_closes);
    let budget = rules.budget.as_ref().unwrap();
    assert_eq!(
        (budget.bytes, budget.offset.to_string().as_str()),
        (1_500_000_000, "+02:00")
    );
}

#[test]
fn what_is_wrong_with_a_link_is_named() {
    let address = "address = \"a\"";
    for (mqtt, link, problem) in [
        ("", "", "mqtt.address is missing"),
        (
            "address = \"a\"\naddresses = [\"b\"]",
            "",
            "mqtt.addresses stands beside mqtt.address",
        ),
        ("addresses = []", "", "mqtt.addresses must name from 1 to 8"),
        (
            "addresses = [\"a\", \"a:8883\"]",
            "",
            "mqtt.addresses names \"a:8883\" twice",
        ),
        (
            "addresses = [\"a\", \"::1:8883\"]",
            "",
            "mqtt.addresses is an IPv6 address whose end may be a port",
        ),
        (
            "address = \"a\"\nprefer_first_after = \"59s\"",
            "",
            "mqtt.prefer_first_after",
        ),
        (
            "address = \"a\"\nconnect_timeout = \"999ms\"",
            "",
            "mqtt.connect_timeout",
        ),
        (
            "address = \"a\"\nproxy = \"https://u:sesame@p:1\"",
            "",
            "mqtt.proxy must begin with http://",
        ),
        (
            address,
            "quiet = [\"at night\"]",
            "link.quiet \"at night\" is not of the form",
        ),
        (
            address,
            "quiet = [\"00:00-12:00\", \"12:00-24:00\"]",
            "link.quiet leaves no time",
        ),
        (
            address,
            "utc_offset = \"CET\"",
            "link.utc_offset \"CET\" is not UTC",
        ),
        (address, "budget = \"99kB\"", "link.budget must be bytes"),
        (address, "budget = \"lots\"", "link.budget must be bytes"),
        (address, "period = \"week\"", "link.period must be"),
        (address, "day = 29", "link.day must be from 1 to 28"),
        (address, "day = 0", "link.day must be from 1 to 28"),
        (
            address,
            "period = \"day\"\nday = 2",
            "link.day is of a period of months",
        ),
        (address, "at_limit = \"drop\"", "link.at_limit must be"),
        (address, "quite = []", "link.quite is not a known key"),
    ] {
        let error = load(&with_link(mqtt, link)).unwrap_err();
        assert!(error.contains(problem), "{problem} in\n{error}");
        assert!(!error.contains("sesame"), "{error}");
    }
    for (mqtt, link) in [
        (
            "address = \"a\"\nprefer_first_after = \"60s\"\nconnect_timeout = \"1s\"",
            "budget = \"100kB\"",
        ),
        (
            "addresses = [\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\"]",
            "period = \"day\"\nbudget = \"1MB\"",
        ),
    ] {
        load(&with_link(mqtt, link)).unwrap();
    }
    let nine = "addresses = [\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\",\"i\"]";
    assert!(
        load(&with_link(nine, ""))
            .unwrap_err()
            .contains("mqtt.addresses must name")
    );
}

#[test]
fn a_proxys_password_is_in_nothing_that_is_shown() {
    let mqtt = "address = \"a\"\nproxy = \"http://plant:sesame@p:3128\"";
    let settings = load(&with_link(mqtt, "")).unwrap();
    let shown = format!("{settings:?} {settings:#?}");
    assert!(shown.contains("3128"), "{shown}");
    assert!(
        !shown.contains("sesame") && !shown.contains("cGxhbnQ6"),
        "{shown}"
    );
}
