//! `edge-agent init` by the real binary: without a terminal, through one, and where it may not write.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use edge_agent::Settings;
use tempfile::TempDir;
use testkit::port::free_port;
use testkit::process::Guard;

use crate::bridge::Bridge;
use crate::broker::{Broker, certificates};
use crate::eventually;
use crate::process::{agent, stderr};

/// A folder with the certificates of these devices, as `certs device` writes them.
fn folder(devices: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tls = &certificates().device;
    let place = |from: &Path, to: &str| {
        let to = folder.path().join("certs").join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    };
    for device in devices {
        place(&tls.ca, "ca.pem");
        place(&tls.cert, &format!("device/{device}.pem"));
        place(&tls.key, &format!("device/{device}.key"));
    }
    folder
}

fn init(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = agent(&["init"]);
    command.args(arguments).current_dir(folder);
    command.stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn without_a_terminal_all_that_is_found_is_taken_and_checked() {
    let folder = folder(&["press-7"]);
    let output = init(folder.path(), &["--broker", "broker.example.com"]);
    assert!(
        output.status.success(),
        "{}\n{}",
        stdout(&output),
        stderr(&output)
    );
    let said = stdout(&output);
    for part in [
        "device press-7",
        "settings are good",
        "Next: edge-agent run --config agent.toml",
    ] {
        assert!(said.contains(part), "{part} in\n{said}");
    }
    let path = folder.path().join("agent.toml");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode & 0o137, 0, "{mode:o}");
    let settings = Settings::load(&path).unwrap();
    assert_eq!(settings.agent.link.device.as_str(), "press-7");
    assert_eq!(settings.agent.link.brokers[0].host, "broker.example.com");
    assert!(
        settings
            .agent
            .sources
            .iter()
            .any(|source| source.name.as_str() == "host")
    );
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(
        text.lines().filter(|line| line.starts_with('#')).count() > 8,
        "{text}"
    );
    // What is commented out is right, too, once it is not.
    let all: String = text
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| !rest.starts_with(' '))
                .unwrap_or(line)
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    let path = folder.path().join("all.toml");
    std::fs::write(&path, all).unwrap();
    let sources = Settings::load_sources(&path).unwrap();
    assert!(
        sources
            .iter()
            .any(|source| source.name.as_str() == "socket")
    );
}

#[test]
fn an_existing_file_stays_unless_it_is_forced() {
    let folder = folder(&["press-7"]);
    let path = folder.path().join("agent.toml");
    std::fs::write(&path, "mine").unwrap();
    let output = init(folder.path(), &["--broker", "a.example"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("agent.toml: it exists"),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("--force"), "{}", stderr(&output));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    let output = init(folder.path(), &["--broker", "a.example", "--force"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        std::fs::read_to_string(&path)
            .unwrap()
            .contains("a.example")
    );
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "nothing else is left: {names:?}");
}

#[test]
fn a_folder_that_takes_no_files_is_named() {
    let folder = folder(&["press-7"]);
    for config in [
        "none/agent.toml",
        "certs",
        "certs/ca.pem/agent.toml",
        "/proc/agent.toml",
    ] {
        let output = init(
            folder.path(),
            &["--broker", "a.example", "--config", config],
        );
        assert_eq!(output.status.code(), Some(2), "{config}");
        let said = stderr(&output);
        assert!(
            said.contains("failed to write settings") && said.contains(config),
            "{said}"
        );
        // A file system that takes none of anybody shows it only when it is tried.
        let is_known = !config.starts_with("/proc");
        assert_eq!(output.stdout.is_empty(), is_known, "{config}");
    }
}

#[test]
fn without_certificates_it_says_what_is_missing() {
    let folder = folder(&[]);
    let output = init(folder.path(), &["--broker", "a.example", "--certs", "keys"]);
    assert_eq!(output.status.code(), Some(2));
    let (said, problems) = (stdout(&output), stderr(&output));
    assert!(
        said.contains("no certificate of a device") && said.contains("agent.toml is written"),
        "{said}"
    );
    assert!(
        problems.contains("tls.") && problems.contains("keys/"),
        "{problems}"
    );
    assert!(folder.path().join("agent.toml").exists());
}

#[test]
fn which_device_it_is_must_be_known() {
    let folder = folder(&["press-7", "copy"]);
    // Both are of one device: the name decides by the certificate, not by the file.
    let output = init(
        folder.path(),
        &["--broker", "a.example", "--device", "press-8"],
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("press-7"), "{}", stderr(&output));
    let output = init(folder.path(), &["--broker", "a.example"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--device"), "{}", stderr(&output));
    let output = init(
        folder.path(),
        &["--broker", "a.example", "--device", "press-7"],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    let output = init(folder.path(), &["--broker", "[::1:1", "--config", "b.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!folder.path().join("b.toml").exists());
}

/// Runs `init` on a terminal, on which these answers are typed.
fn on_a_terminal(folder: &Path, arguments: &[&str], answers: &str) -> String {
    // The terminal of another make: Python's.
    let program =
        "import pty, sys, os\nsys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let mut child = Command::new("python3")
        .args(["-c", program, env!("CARGO_BIN_EXE_edge-agent"), "init"])
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(answers.as_bytes()).unwrap();
    // It stays open until the end: a terminal has no end.
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn on_a_terminal_it_asks() {
    let folder = folder(&["press-7"]);
    // Others may listen on this machine: each question after the host's is answered with no.
    let said = on_a_terminal(
        folder.path(),
        &[],
        "[::1:1\nbroker.example.com:8884\nperhaps\nn\nn\nn\nn\nn\n",
    );
    assert!(
        said.contains("cannot be used") && said.contains("answer y or n"),
        "{said}"
    );
    let text = std::fs::read_to_string(folder.path().join("agent.toml")).unwrap();
    assert!(
        text.contains("address = \"broker.example.com:8884\""),
        "{text}"
    );
    assert!(text.contains("\n#[source.host]"), "{text}");
    assert!(said.contains("settings are good"), "{said}");
}

#[test]
fn answers_that_end_write_nothing() {
    let folder = folder(&["press-7"]);
    // Control-D is the end of input at a terminal.
    let said = on_a_terminal(folder.path(), &[], "\u{4}");
    assert!(said.contains("nothing is written"), "{said}");
    let long = format!("{}\n", "x".repeat(3000));
    let said = on_a_terminal(folder.path(), &[], &long);
    assert!(
        said.contains("nothing is written") || said.contains("cannot be used"),
        "{said}"
    );
    assert!(!folder.path().join("agent.toml").exists());
}

/// From nothing to a reading on its way.
#[tokio::test]
async fn a_reading_is_on_its_way_in_a_minute() {
    let begun = std::time::Instant::now();
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let folder = folder(&["press-7"]);
    let admin = format!("127.0.0.1:{}", free_port());
    let address = format!("127.0.0.1:{}", broker.port);
    let output = init(
        folder.path(),
        &["--yes", "--broker", &address, "--http", &admin],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    let mut run = agent(&["run"]);
    let run = run
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _agent = Guard::spawn(run);
    eventually("readings arrive", || !bridge.heard().rows.is_empty()).await;
    eventually("the status knows it", || {
        let status = agent(&["status", "--json"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let status: Option<serde_json::Value> = serde_json::from_slice(&status.stdout).ok();
        status.is_some_and(|status| status["balance"]["committed"].as_u64() > Some(0))
    })
    .await;
    assert!(begun.elapsed() < std::time::Duration::from_secs(60));
}
