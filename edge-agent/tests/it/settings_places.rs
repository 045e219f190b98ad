//! Settings of several places, read by the real binary.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::process::{Home, agent, stderr};

fn beside(home: &Home, name: &str, text: &str) {
    std::fs::create_dir_all(home.path("conf.d")).unwrap();
    std::fs::write(home.path(&format!("conf.d/{name}")), text).unwrap();
}

/// `check` with these arguments and variables.
fn check(home: &Home, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let config = home.config();
    let mut all = vec!["check", "--config", &config];
    all.extend(arguments);
    agent(&all)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn lines(output: &Output, home: &Home) -> Vec<String> {
    let folder = format!("{}/", Path::new(&home.config()).parent().unwrap().display());
    stderr(output)
        .lines()
        .map(|line| line.trim().replace(&folder, ""))
        .collect()
}

#[test]
fn every_problem_is_named_with_its_place_and_the_nearest_key() {
    let home = Home::new(1);
    beside(
        &home,
        "a.toml",
        "[source.host]\nintervall = \"1s\"\ninterval = \"1ms\"\n[source.hots]\n",
    );
    beside(
        &home,
        "b.toml",
        "[source.socket]\ntimestamp_unit = \"mss\"\n[buffer]\nrows_max = \"many\"\n",
    );
    let variables = [
        ("TIDELINE_AGENT_MQTT__ADRESS", "a"),
        ("TIDELINE_AGENT_SESSION__BATCH_ROWS_MAX", "0"),
    ];
    let output = check(&home, &["--set", "admin.htp=1"], &variables);
    assert_eq!(output.status.code(), Some(2));
    let found = lines(&output, &home);
    for expected in [
        "conf.d/a.toml:2: source.host.intervall is not a known key; did you mean interval?",
        "conf.d/a.toml:3: source.host.interval must be from 200ms",
        "conf.d/a.toml:4: source.hots.kind \"hots\" is no kind of source",
        "conf.d/b.toml:2: source.socket.timestamp_unit cannot be used: unknown variant `mss`",
        "conf.d/b.toml:4: buffer.rows_max cannot be used: invalid type: string \"many\", expected u64",
        "TIDELINE_AGENT_MQTT__ADRESS: mqtt.adress is not a known key; did you mean TIDELINE_AGENT_MQTT__ADDRESS?",
        "TIDELINE_AGENT_SESSION__BATCH_ROWS_MAX: session.batch_rows_max must",
        "--set admin.htp: admin.htp is not a known key; did you mean http?",
    ] {
        assert!(
            found.iter().any(|line| line.starts_with(expected)),
            "{expected} in {found:#?}"
        );
    }
    assert_eq!(found.len(), 9, "{found:#?}");
    assert!(
        found
            .iter()
            .any(|line| line.ends_with("did you mean host?")),
        "{found:#?}"
    );
    assert!(output.stdout.is_empty());
}

#[test]
fn problems_as_json_have_the_same() {
    let home = Home::new(1);
    beside(&home, "a.toml", "[source.host]\nintervall = \"1s\"\n");
    let output = check(
        &home,
        &["--json"],
        &[("TIDELINE_AGENT_ADMIN__HTTP", "here")],
    );
    assert_eq!(output.status.code(), Some(2));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["good"], false);
    assert_eq!(found["problems"][0]["key"], "source.host.intervall");
    assert_eq!(found["problems"][0]["did_you_mean"], "interval");
    assert_eq!(found["problems"][0]["place"]["file"]["line"], 2);
    let place = &found["problems"][1]["place"];
    assert_eq!(place["variable"], "TIDELINE_AGENT_ADMIN__HTTP");
    let home = Home::new(1);
    let output = check(&home, &["--json"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&found["good"], &found["device"]),
        (&true.into(), &"press-7".into())
    );
    assert_eq!(found["problems"], serde_json::json!([]));
    std::fs::write(home.path("buffer.db"), "notes").unwrap();
    std::fs::write(home.path("agent.sock"), "notes").unwrap();
    let output = check(&home, &["--json"], &[]);
    assert_eq!(output.status.code(), Some(1), "what is no setting's fault");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["good"], false);
    assert_eq!(found["failures"].as_array().unwrap().len(), 2, "{found}");
}

#[test]
fn each_key_is_said_with_where_it_was_written() {
    let home = Home::new(1);
    beside(&home, "a.toml", "[mqtt]\naddress = \"a.example:1\"\n");
    let variables = [("TIDELINE_AGENT_MQTT__ADDRESS", "b.example:2")];
    let output = check(&home, &["--set", "mqtt.keep_alive=10s"], &variables);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("broker           b.example:2"), "{text}");
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with("mqtt.address"))
        .unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(
        words[1..3],
        ["TIDELINE_AGENT_MQTT__ADDRESS,", "over"],
        "{line}"
    );
    assert!(
        line.contains("conf.d/a.toml:2, ") && line.contains("agent.toml:2"),
        "{line}"
    );
    assert!(text.contains("--set mqtt.keep_alive"), "{text}");
    // With one file alone there is nothing to tell apart, unless it is wanted.
    let home = Home::new(1);
    let text = |arguments: &[&str]| String::from_utf8(check(&home, arguments, &[]).stdout).unwrap();
    assert!(!text(&[]).contains("agent.toml:2"));
    assert!(text(&["--keys"]).contains("agent.toml:2"));
}

#[test]
fn a_path_that_is_no_text_is_shown_as_far_as_it_is() {
    use std::os::unix::ffi::OsStringExt as _;
    let home = Home::new(1);
    let name = std::ffi::OsString::from_vec(b"conf.d/\xff.toml".to_vec());
    beside(&home, "a.toml", "");
    let folder = Path::new(&home.config()).parent().unwrap().to_owned();
    std::fs::write(folder.join(name), "nothing = 1\n").unwrap();
    let output = check(&home, &["--json"], &[]);
    assert_eq!(output.status.code(), Some(2));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let path = found["problems"][0]["place"]["file"]["path"]
        .as_str()
        .unwrap();
    assert!(path.ends_with("\u{fffd}.toml"), "{path}");
}

#[test]
fn an_agent_needs_no_file_when_variables_say_all() {
    let home = Home::new(1);
    let text = std::fs::read_to_string(home.config()).unwrap();
    let table: daemon::settings::Table = text.parse().unwrap();
    std::fs::remove_file(home.config()).unwrap();
    let value = |section: &str, key: &str| table[section][key].as_str().unwrap().to_owned();
    let secret = home.path("address");
    std::fs::write(&secret, "broker.example.com:8883\n").unwrap();
    let (ca, cert, key) = (
        value("tls", "ca"),
        value("tls", "cert"),
        value("tls", "key"),
    );
    let variables = [
        ("TIDELINE_AGENT_MQTT__ADDRESS__FILE", secret.as_str()),
        ("TIDELINE_AGENT_TLS__CA", &ca),
        ("TIDELINE_AGENT_TLS__CERT", &cert),
        ("TIDELINE_AGENT_TLS__KEY", &key),
        ("TIDELINE_AGENT_BUFFER__PATH", "buffer.db"),
        ("TIDELINE_AGENT_SOURCE__HOST__INTERVAL", "10s"),
        ("TIDELINE_AGENT_DEVICE", ""),
    ];
    let output = check(&home, &[], &variables);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("broker.example.com:8883"), "{text}");
    assert!(text.contains("source host"), "{text}");
    let output = check(&home, &[], &variables[..4]);
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(
        said.contains("buffer is missing") && said.contains("does not exist"),
        "{said}"
    );
    let output = check(&home, &[], &[]);
    assert!(
        stderr(&output).contains("agent.toml: does not exist"),
        "{}",
        stderr(&output)
    );
}

/// What the document says is read by the real code.
#[test]
fn the_examples_of_the_document_hold() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/settings.md");
    let text = std::fs::read_to_string(document).unwrap();
    let blocks = |language: &str| -> Vec<String> {
        let fence = format!("```{language}\n");
        text.split(&fence)
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap().to_owned())
            .collect()
    };
    let home = Home::new(1);
    let files = blocks("toml");
    assert!(files.len() >= 2, "{}", files.len());
    for block in &files {
        let name = block.lines().next().unwrap().trim_start_matches("# ");
        assert!(name.starts_with("conf.d/"), "{name}");
        beside(&home, name.trim_start_matches("conf.d/"), block);
    }
    let variables: Vec<(String, String)> = blocks("env")
        .iter()
        .flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.split_once('=').unwrap();
            (
                name.to_owned(),
                value.replace("/run/secrets/address", &home.path("secret")),
            )
        })
        .collect();
    assert!(variables.len() >= 3, "{variables:?}");
    std::fs::write(home.path("secret"), "broker.example.com:8883\n").unwrap();
    let config = home.config();
    let output = agent(&[
        "check",
        "--config",
        &config,
        "--set",
        "source.host.interval=1m",
    ])
    .envs(variables)
    .output()
    .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("every 60s") || said.contains("every 1m"),
        "{said}"
    );
}
