//! What sections of sources may say, and that each problem names its key.

use edge_agent::Settings;
use edge_agent::source::{SOURCES_MAX, SourceConfig};

fn load(text: &str) -> Result<Vec<SourceConfig>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    std::fs::write(&path, text).unwrap();
    Settings::load_sources(&path).map_err(|failure| {
        assert_eq!(failure.exit_code(), 2);
        failure.to_string()
    })
}

/// Whether a host source with these lines is accepted.
fn check_host(lines: &str, key: &str, is_valid: bool) {
    match load(&format!("[source.host]\n{lines}\n")) {
        Ok(_) => assert!(is_valid, "{lines} is accepted"),
        Err(error) => {
            assert!(!is_valid, "{lines}: {error}");
            assert!(
                error.contains(&format!(": source.host{key} ")),
                "{key} in {error}"
            );
        }
    }
}

#[test]
fn a_name_is_the_kind_unless_that_is_beside_it() {
    let sources = load(
        "[source.host]\n\
         [source.fast]\nkind = \"host\"\ninterval = \"1s\"\n\
         [source.socket]\nunix = \"a.sock\"\n\
         [source.line-3]\nkind = \"socket\"\nudp = \"127.0.0.1:0\"\n",
    )
    .unwrap();
    let found: Vec<(&str, &str)> = sources
        .iter()
        .map(|source| (source.name.as_str(), source.source.kind()))
        .collect();
    let expected = [
        ("fast", "host"),
        ("host", "host"),
        ("line-3", "socket"),
        ("socket", "socket"),
    ];
    assert_eq!(found, expected);
}

#[test]
fn every_problem_of_every_source_is_named_at_once() {
    let error = load(
        "[source.hots]\ninterval = \"10s\"\n\
         [source.host]\nintervall = \"10s\"\ninterval = \"1ms\"\ntimeout = \"1h\"\nprefix = \"a\\u0007\"\n\
         [[source.host.shape]]\nsensor = \"a\"\nrenam = \"b\"\ndead_band = -1.0\n\
         [source.\"a b\"]\nkind = \"host\"\n\
         [source.number]\nkind = 7\n\
         [source.typed]\nkind = \"host\"\nper_core = \"yes\"\n\
         [source.socket]\nunix = \"a\"\ntcp = \"127.0.0.1:1\"\ninterval = \"1s\"\ntimeout = \"1s\"\n",
    )
    .unwrap_err();
    for expected in [
        "source.hots.kind \"hots\" is no kind of source; kinds are exec, ",
        "source.host.intervall is not a known key",
        "source.host.interval must be from 200ms",
        "source.host.timeout must be from 10ms",
        "source.host.prefix must have at most 64 bytes",
        "source.host.shape[0].dead_band must be from 0",
        "source.a b is no name of a source",
        "source.number.kind must be a text",
        "source.typed.per_core cannot be used",
        "source.socket needs either unix, tcp or udp",
        "source.socket.interval is no key of the kind socket",
        "source.socket.timeout is no key of the kind socket",
    ] {
        assert!(
            error.contains(&format!(": {expected}")),
            "{expected} in\n{error}"
        );
    }
    assert!(error.contains("renam is not a known key"), "{error}");
}

#[test]
fn names_and_their_number_are_bounded() {
    for (name, is_valid) in [
        ("a", true),
        ("aZ_0-9", true),
        ("\"\"", false),
        ("\"a.b\"", false),
        ("\"é\"", false),
        (&*"a".repeat(32), true),
        (&*"a".repeat(33), false),
    ] {
        let loaded = load(&format!("[source.{name}]\nkind = \"host\"\n"));
        assert_eq!(loaded.is_ok(), is_valid, "{name}: {loaded:?}");
    }
    for (count, is_valid) in [(SOURCES_MAX, true), (SOURCES_MAX + 1, false)] {
        let all: String = (0..count)
            .map(|number| format!("[source.s{number}]\nkind = \"host\"\n"))
            .collect();
        assert_eq!(load(&all).is_ok(), is_valid, "{count}");
    }
}

#[test]
fn common_keys_have_their_bounds() {
    for (lines, key, is_valid) in [
        ("interval = \"199ms\"", ".interval", false),
        ("interval = \"200ms\"", ".interval", true),
        ("interval = \"1day\"", ".interval", true),
        ("interval = \"86401s\"", ".interval", false),
        ("interval = \"soon\"", ".interval", false),
        ("timeout = \"9ms\"", ".timeout", false),
        ("timeout = \"10ms\"", ".timeout", true),
        ("timeout = \"1m\"", ".timeout", true),
        ("timeout = \"61s\"", ".timeout", false),
        (
            "readings_per_second_max = 0",
            ".readings_per_second_max",
            false,
        ),
        (
            "readings_per_second_max = 1",
            ".readings_per_second_max",
            true,
        ),
        (
            "readings_per_second_max = 4294967295",
            ".readings_per_second_max",
            true,
        ),
        (
            "readings_per_second_max = 4294967296",
            ".readings_per_second_max",
            false,
        ),
        ("heartbeat = \"999ms\"", ".heartbeat", false),
        ("heartbeat = \"1s\"", ".heartbeat", true),
        ("heartbeat = \"1day\"", ".heartbeat", true),
        ("heartbeat = \"86401s\"", ".heartbeat", false),
        ("dead_band = 0", ".dead_band", true),
        ("dead_band = 1e18", ".dead_band", true),
        ("dead_band = 1.1e18", ".dead_band", false),
        ("dead_band = nan", ".dead_band", false),
        ("per_core = 1", ".per_core", false),
    ] {
        check_host(lines, key, is_valid);
    }
    for (bytes, is_valid) in [(64, true), (65, false)] {
        check_host(
            &format!("prefix = {:?}", "p".repeat(bytes)),
            ".prefix",
            is_valid,
        );
    }
}

#[test]
fn rules_have_their_bounds() {
    let rule = |lines: &str, key: &str, is_valid: bool| {
        let lines = format!("[[source.host.shape]]\n{lines}");
        check_host(&lines, &format!(".shape[0]{key}"), is_valid);
    };
    rule("sensor = \"*\"", "", true);
    rule("sensor = \"\"", ".sensor", false);
    rule("sensor = \"*\"\nrename = \"a*\"", ".rename", true);
    rule("sensor = \"*\"\nrename = \"**\"", ".rename", false);
    rule("sensor = \"*\"\nrename = \"\"", ".rename", false);
    rule("sensor = \"*\"\nheartbeat = \"999ms\"", ".heartbeat", false);
    rule("sensor = \"*\"\nheartbeat = \"1s\"", ".heartbeat", true);
    rule(
        "sensor = \"*\"\nrange = { min = 1.0, max = 1.0 }",
        ".range",
        true,
    );
    rule(
        "sensor = \"*\"\nrange = { min = 1.1, max = 1.0 }",
        ".range",
        false,
    );
    rule("sensor = \"*\"\nrange = { min = nan }", ".range", false);
    rule("sensor = \"*\"\nrange = { max = 5 }", ".range", true);
    rule(
        "sensor = \"*\"\nrange = { max = 5, outside = \"refuse\" }",
        ".range",
        true,
    );
    rule(
        "sensor = \"*\"\nrange = { max = 5, outside = \"good\" }",
        ".range.outside",
        false,
    );
    rule("sensor = \"*\"\naggregate = \"mean\"", "", false);
    rule("sensor = \"*\"\nwindow = \"1m\"", "", false);
    for aggregate in ["mean", "min", "max", "last"] {
        rule(
            &format!("sensor = \"*\"\naggregate = {aggregate:?}\nwindow = \"1m\""),
            "",
            true,
        );
    }
    rule(
        "sensor = \"*\"\naggregate = \"sum\"\nwindow = \"1m\"",
        ".aggregate",
        false,
    );
    for (window, is_valid) in [
        ("99ms", false),
        ("100ms", true),
        ("1h", true),
        ("3601s", false),
    ] {
        let lines = format!("sensor = \"*\"\naggregate = \"last\"\nwindow = {window:?}");
        rule(&lines, ".window", is_valid);
    }
    for (count, is_valid) in [(256, true), (257, false)] {
        let rules = "[[source.host.shape]]\nsensor = \"*\"\n".repeat(count);
        check_host(&rules, ".shape", is_valid);
    }
}

#[test]
fn sockets_have_one_address_and_are_local_unless_allowed() {
    for (lines, key, is_valid) in [
        ("unix = \"a.sock\"", "", true),
        ("tcp = \"127.0.0.1:9\"", "", true),
        ("tcp = \"[::1]:9\"", "", true),
        ("udp = \"127.0.0.1:9\"", "", true),
        ("", "", false),
        ("tcp = \"127.0.0.1:9\"\nudp = \"127.0.0.1:9\"", "", false),
        ("tcp = \"0.0.0.0:9\"", ".tcp", false),
        ("udp = \"[::]:9\"", ".udp", false),
        ("tcp = \"0.0.0.0:9\"\nallow_remote = true", "", true),
        ("udp = \"[::]:9\"\nallow_remote = true", "", true),
        (
            "unix = \"a.sock\"\nallow_remote = true",
            ".allow_remote",
            false,
        ),
        ("tcp = \"localhost\"", ".tcp", false),
        ("unix = \"a.sock\"\nformat = \"json\"", "", true),
        ("unix = \"a.sock\"\nformat = \"influx\"", "", true),
        ("unix = \"a.sock\"\nformat = \"xml\"", ".format", false),
        (
            "unix = \"a.sock\"\nformat = \"influx\"\ntags_ignored = [\"host\"]",
            "",
            true,
        ),
        (
            "unix = \"a.sock\"\ntags_ignored = [\"host\"]",
            ".tags_ignored",
            false,
        ),
    ] {
        match load(&format!("[source.socket]\n{lines}\n")) {
            Ok(_) => assert!(is_valid, "{lines} is accepted"),
            Err(error) => {
                assert!(!is_valid, "{lines}: {error}");
                assert!(
                    error.contains(&format!(": source.socket{key} ")),
                    "{key} in {error}"
                );
            }
        }
    }
    for (tags, is_valid) in [(32, true), (33, false)] {
        let tags = vec!["\"t\""; tags].join(", ");
        let text = format!(
            "[source.socket]\nunix = \"a\"\nformat = \"influx\"\ntags_ignored = [{tags}]\n"
        );
        assert_eq!(load(&text).is_ok(), is_valid);
    }
}

#[test]
fn other_sections_are_none_of_a_trials_business() {
    let text = "[mqtt]\naddress = 7\n[source.host]\n[unknown]\nkey = 1\n";
    assert_eq!(load(text).unwrap().len(), 1);
    assert!(load("").unwrap().is_empty());
}

#[test]
fn no_secret_of_a_source_is_shown() {
    let sources = load("[source.socket]\nunix = \"hidden.sock\"\n[source.simulate]\nprefix = \"visible\"\n[[source.simulate.sensor]]\nsensor = \"a\"\nwave = \"sine\"\nmax = 1\nperiod = \"10s\"\n").unwrap();
    let shown = format!("{sources:?}");
    assert!(
        shown.contains("visible") && shown.contains("written: .."),
        "{shown}"
    );
}
