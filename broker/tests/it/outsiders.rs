//! Mosquitto's clients against our broker, with either version of MQTT.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use certs::{Role, TlsFiles};
use testkit::mosquitto::client;

use crate::client::Client;
use crate::rig::Rig;

/// How to start one of Mosquitto's clients against a port.
pub(crate) fn program(program: &str, port: u16, files: &TlsFiles) -> Command {
    let mut command = client(program, port, [&files.ca, &files.cert, &files.key]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub(crate) fn spawn(command: &mut Command) -> Child {
    command
        .spawn()
        .expect("Mosquitto's clients are not installed; run the tests through `cargo xtask test`")
}

pub(crate) fn output(command: &mut Command) -> Output {
    spawn(command).wait_with_output().unwrap()
}

fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mosquitto_sub_observes_with_either_version() {
    let rig = Rig::start().await;
    let port = rig.address.port();
    let eye = rig.fleet.files("eye", Role::Observer);
    for version in ["mqttv311", "mqttv5"] {
        let mut device = Client::connect(&rig, "press-7", Role::Device).await;
        // Whoever sees what was retained has subscribed.
        device
            .publish_with("tl/v1/press-7/up/status", [1, 2], true)
            .await;
        let mut sub = spawn(
            program("mosquitto_sub", port, &eye)
                .args(["-V", version, "-q", "1", "-t", "tl/v1/+/up/#", "-C", "3"])
                .args(["-F", "%t %x", "-W", "20"]),
        );
        let received = tokio::task::spawn_blocking(move || {
            let mut lines = lines(&mut sub);
            let first = lines.next();
            (first, lines, sub)
        });
        let (first, lines, mut sub) = received.await.unwrap();
        assert_eq!(first.as_deref(), Some("tl/v1/press-7/up/status 0102"));
        device.publish("tl/v1/press-7/up/telemetry", [0xab]).await;
        device.publish("tl/v1/press-7/up/event", [0xcd]).await;
        let rest: Vec<String> = tokio::task::spawn_blocking(|| lines.collect())
            .await
            .unwrap();
        assert_eq!(
            rest,
            ["tl/v1/press-7/up/telemetry ab", "tl/v1/press-7/up/event cd"]
        );
        assert!(sub.wait().unwrap().success(), "{version}");
        device
            .publish_with("tl/v1/press-7/up/status", [], true)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mosquitto_pub_is_a_device_with_either_version() {
    let rig = Rig::start().await;
    let port = rig.address.port();
    let device = rig.fleet.files("press-7", Role::Device);
    let mut bridge = Client::connect(&rig, "bridge", Role::Bridge).await;
    bridge.subscribe("tl/v1/+/up/#").await;
    for version in ["mqttv311", "mqttv5"] {
        let publish = |topic: &'static str| {
            let mut command = program("mosquitto_pub", port, &device);
            command.args([
                "-V", version, "-i", "press-7", "-q", "1", "-m", "hello", "-t", topic,
            ]);
            tokio::task::spawn_blocking(move || output(&mut command))
        };
        let done = publish("tl/v1/press-7/up/event").await.unwrap();
        assert!(done.status.success(), "{version}: {done:?}");
        assert_eq!(bridge.message().await.payload, "hello");
        let done = publish("tl/v1/press-8/up/event").await.unwrap();
        assert!(
            !done.status.success(),
            "{version}: another device's topic was taken"
        );
    }
    // What was refused reached nobody: the next that comes is what both devices say last.
    for name in ["press-7", "press-8"] {
        let mut device = Client::connect(&rig, name, Role::Device).await;
        device
            .publish(&format!("tl/v1/{name}/up/event"), "last")
            .await;
        assert_eq!(bridge.message().await.payload, "last");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mosquitto_sub_is_told_what_is_not_for_it() {
    let rig = Rig::start().await;
    let port = rig.address.port();
    let device = rig.fleet.files("press-7", Role::Device);
    for (client_id, filter, says) in [
        ("press-7", "tl/v1/press-8/down/#", "denied"),
        ("press-8", "tl/v1/press-8/down/#", "not authorised"),
    ] {
        let mut command = program("mosquitto_sub", port, &device);
        command.args(["-i", client_id, "-t", filter, "-W", "10"]);
        let done = tokio::task::spawn_blocking(move || output(&mut command))
            .await
            .unwrap();
        let errors = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(errors.contains(says), "{client_id}: {errors}");
    }
}
