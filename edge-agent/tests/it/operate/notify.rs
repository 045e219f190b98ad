//! What systemd is told, on a socket such as its own.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use testkit::process::{Guard, Signal};

use schema::message::CommandState;

use crate::bridge::Bridge;
use crate::broker::Broker;
use crate::disk_trouble::{SmallDisk, as_root};
use crate::process::Home;
use crate::tools::{ended, id, order};
use crate::{PATIENCE, eventually};

/// Takes what is sent, with the time when it came.
struct Systemd(Receiver<(Instant, String)>);

impl Systemd {
    fn of(socket: UnixDatagram) -> Self {
        let (sender, received) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count) = socket.recv(&mut bytes) {
                let text = String::from_utf8(bytes[..count].to_vec()).unwrap();
                if sender.send((Instant::now(), text)).is_err() {
                    break;
                }
            }
        });
        Self(received)
    }

    fn at(path: &str) -> Self {
        Self::of(UnixDatagram::bind(path).unwrap())
    }

    /// Waits for a message that holds this; returns it.
    fn hears(&self, what: &str) -> String {
        self.hears_before(what, "\0")
    }

    /// As [`Self::hears`], and nothing that holds the other comes before.
    fn hears_before(&self, what: &str, other: &str) -> String {
        let until = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        while let Ok((_, text)) = self
            .0
            .recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            if text.contains(what) {
                return text;
            }
            assert!(!text.contains(other), "{text} came after {heard:?}");
            heard.push(text);
        }
        panic!("{what} was not heard, but {heard:?}");
    }

    /// How many messages that hold this come within a time.
    fn counts(&self, what: &str, within: Duration) -> usize {
        let until = Instant::now() + within;
        let left = || until.saturating_duration_since(Instant::now());
        let mut count = 0;
        while let Ok((_, text)) = self.0.recv_timeout(left()) {
            count += usize::from(text.contains(what));
        }
        count
    }
}

fn spawn(home: &Home, socket: &str, watchdog: Option<Duration>) -> Guard {
    home.spawn_with(|agent| {
        agent.env("NOTIFY_SOCKET", socket);
        if let Some(due) = watchdog {
            agent.env("WATCHDOG_USEC", due.as_micros().to_string());
        }
    })
}

#[tokio::test]
async fn a_start_a_life_and_a_stop_are_said() {
    let home = Home::new(1);
    let path = home.path("notify");
    let name = format!("@tideline-agent-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name[1..]).unwrap();
    let by_name = Systemd::of(UnixDatagram::bind_addr(&address).unwrap());
    for (socket, systemd) in [(&path, Systemd::at(&path)), (&name, by_name)] {
        let mut agent = spawn(&home, socket, Some(Duration::from_millis(600)));
        let ready = systemd.hears("READY=1");
        assert!(ready.contains("\nSTATUS="), "{ready}");
        // It works by then: the buffer is open and its source listens.
        assert_eq!(home.produce(1, 1).await, 1);
        systemd.hears("WATCHDOG=1");
        systemd.hears("STATUS=no connection: cannot reach 127.0.0.1:1");
        assert!(systemd.counts("WATCHDOG=1", Duration::from_secs(2)) >= 6);
        let (code, _) = agent.ends_on(Signal::TERM);
        assert_eq!(code, Some(0));
        systemd.hears("STOPPING=1");
    }
}

/// The same process, which systemd would end had it said that it stops.
#[tokio::test]
async fn a_restart_by_command_is_no_stop() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let home = Home::new(broker.port);
    let path = home.path("notify");
    let systemd = Systemd::at(&path);
    let _agent = spawn(&home, &path, None);
    systemd.hears("READY=1");
    let asked = id(1);
    order(&bridge, asked, "restart", "{}").await;
    let reloading = systemd.hears_before("RELOADING=1", "STOPPING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    systemd.hears_before("READY=1", "STOPPING=1");
    assert_eq!(ended(&bridge, asked).await.state, CommandState::Succeeded);
}

#[tokio::test]
async fn nothing_is_said_where_nobody_listens() {
    let home = Home::new(1);
    let mut agent = home.spawn_with(|agent| {
        agent.env("NOTIFY_SOCKET", "/nowhere/notify");
        agent.env("WATCHDOG_USEC", "300000");
    });
    let socket = home.path("agent.sock");
    eventually("it works", || Path::new(&socket).exists()).await;
    assert_eq!(home.produce(1, 2).await, 2);
    assert_eq!(agent.ends_on(Signal::TERM).0, Some(0), "{}", home.log());
    // Without a watchdog no sign of life is given.
    let path = home.path("notify");
    let systemd = Systemd::at(&path);
    let _agent = spawn(&home, &path, None);
    systemd.hears("READY=1");
    assert_eq!(systemd.counts("WATCHDOG", Duration::from_secs(1)), 0);
}

#[tokio::test]
async fn a_start_that_waits_for_its_disk_asks_for_time_and_says_why() {
    let home = Home::new(1);
    let disk = SmallDisk::mount(Path::new(&home.path("data")), "1m");
    home.set_buffer("data/buffer.db");
    disk.fill();
    let path = home.path("notify");
    let systemd = Systemd::at(&path);
    let _agent = spawn(&home, &path, None);
    systemd.hears("EXTEND_TIMEOUT_USEC=30000000");
    systemd.hears("no room on the disk");
    disk.free();
    systemd.hears("READY=1");
}

/// An ext4 of its own whose writes can be held up.
struct Freezer(String);

impl Freezer {
    fn mount(image: &str, at: &str) -> Self {
        std::fs::create_dir(at).unwrap();
        let file = std::fs::File::create(image).unwrap();
        file.set_len(16 << 20).unwrap();
        done(Command::new("/usr/sbin/mkfs.ext4").args(["-q", image]));
        done(as_root("mount").args(["-o", "loop", image, at]));
        Self(at.to_owned())
    }

    fn freeze(&self) {
        done(as_root("/usr/sbin/fsfreeze").args(["-f", &self.0]));
    }

    fn thaw(&self) {
        let _ = as_root("/usr/sbin/fsfreeze").args(["-u", &self.0]).output();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.thaw();
        let _ = as_root("umount").args(["-l", &self.0]).status();
    }
}

fn done(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A disk that is slow keeps the signs coming; one that hangs ends them, until it is back.
#[tokio::test]
async fn a_disk_that_hangs_ends_the_signs_of_life_and_a_slow_one_does_not() {
    let home = Home::new(1);
    let path = home.path("notify");
    let systemd = Systemd::at(&path);
    // Dropped after the agent is killed by hand: nothing ends a process that waits for a frozen disk.
    let disk = Freezer::mount(&home.path("image"), &home.path("data"));
    home.set_buffer("data/buffer.db");
    let due = Duration::from_secs(2);
    let mut agent = spawn(&home, &path, Some(due));
    systemd.hears("READY=1");
    assert_eq!(home.produce(1, 1).await, 1);
    systemd.hears("WATCHDOG=1");
    // Slow: a write that takes half of the time.
    disk.freeze();
    let (produced, ()) = tokio::join!(home.produce(2, 1), async {
        tokio::time::sleep(due / 2).await;
        disk.thaw();
    });
    assert_eq!(produced, 1);
    assert!(systemd.counts("WATCHDOG=1", due) >= 2);
    disk.freeze();
    let producing = home.produce(3, 1);
    let watching = async {
        // What was sent before, and in the time in which one operation may last.
        tokio::time::sleep(2 * due).await;
        let early = systemd.counts("WATCHDOG=1", Duration::from_millis(10));
        let late = systemd.counts("WATCHDOG=1", 2 * due);
        // The agent still answers, without what the disk would have to say.
        let status = super::json(&home, &["status"]);
        disk.thaw();
        (early, late, status)
    };
    let (produced, (early, late, status)) = tokio::join!(producing, watching);
    assert!(early <= 5, "{early}");
    assert_eq!(late, 0);
    assert_eq!(status["device"], "press-7");
    assert!(status["oldest"].is_null(), "{status}");
    assert_eq!(produced, 1, "nothing is lost by waiting");
    systemd.hears("WATCHDOG=1");
    assert!(
        home.log().contains("no sign of life is given"),
        "{}",
        home.log()
    );
    agent.kill();
}
