//! The clocks of this machine: wall, monotonic since boot with sleep included, which boot it is, and
//! whether the kernel's clock is synchronised. No `unsafe`: what libc would be asked for is read from
//! files.
//!
//! - Time since boot: `/proc/uptime`, which counts sleep and has hundredths; between two looks at it the
//!   process's own monotonic clock gives the rest.
//! - Which boot: `/proc/sys/kernel/random/boot_id`.
//! - Synchronised: a file that a time daemon touches when it has set the clock, below `/run`, which is
//!   empty after a boot. systemd-timesyncd does so by itself; others can be configured to. The file counts
//!   when it was touched after the clock was last set by somebody else.
//!
//! Where `/proc` is not, each process is a boot of its own: what it takes is mended within its own life.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use daemon::{Clock as _, SystemClock, lock};
use xxhash_rust::xxh3::xxh3_64;

use super::core::{JUMP, Moment};

const UPTIME: &str = "/proc/uptime";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where systemd-timesyncd says that it has set the clock.
const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

/// How old a look at the time since boot may be: what a machine that slept gets wrong, and for so long.
const LOOK_AGE_MAX: Duration = Duration::from_millis(100);

/// Where the two clocks part by more, the machine slept. `/proc/uptime` has hundredths.
const SLEPT: i64 = 50_000;

/// How the clock is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockSettings {
    /// The file that a time daemon touches when the clock is synchronised; `None`: there is no such daemon.
    pub synchronised_file: Option<PathBuf>,
    /// By how much the wall clock is wrong, in milliseconds, for fault plans. It is then not taken for
    /// synchronised.
    pub offset_ms: i64,
    /// A file with that offset, which may change while the agent runs.
    pub offset_file: Option<PathBuf>,
    /// Which boot to take this one for, for fault plans.
    pub boot: Option<String>,
}

/// This machine's clocks, as they are read.
#[derive(Debug)]
pub struct Machine {
    settings: ClockSettings,
    /// As in the settings, until it changes.
    synchronised_file: Mutex<Option<PathBuf>>,
    boot: u64,
    started: Instant,
    uptime: Mutex<Uptime>,
    offset_ms: AtomicI64,
    is_synchronised: AtomicBool,
    /// The wall clock less the monotonic one, when last looked at.
    wall: AtomicI64,
    /// When the clock was set last, as it was then set to.
    set_at: AtomicI64,
}

#[derive(Debug)]
struct Uptime {
    /// What to add to the time since the process began, in microseconds.
    before: i64,
    looked: Instant,
}

impl Default for ClockSettings {
    fn default() -> Self {
        Self {
            synchronised_file: Some(SYNCHRONISED.into()),
            offset_ms: 0,
            offset_file: None,
            boot: None,
        }
    }
}

impl Machine {
    /// This machine's clocks.
    #[must_use]
    pub fn new(settings: ClockSettings) -> Self {
        let boot = settings.boot.clone();
        let boot = boot.or_else(|| fs::read_to_string(BOOT_ID).ok());
        // In this order, as below: what passes between the two is made good by the next look, and does not
        // count twice.
        let before = uptime().unwrap_or(0);
        let started = Instant::now();
        let machine = Self {
            // Nothing is known of other processes where the system does not distinguish boots.
            boot: boot.map_or_else(rand::random, |id| xxh3_64(id.trim().as_bytes()) >> 1),
            offset_ms: AtomicI64::new(settings.offset_ms),
            synchronised_file: Mutex::new(settings.synchronised_file.clone()),
            settings,
            uptime: Mutex::new(Uptime {
                before,
                looked: started,
            }),
            started,
            is_synchronised: AtomicBool::new(false),
            wall: AtomicI64::new(0),
            set_at: AtomicI64::new(i64::MIN),
        };
        let now = machine.moment();
        machine
            .wall
            .store(now.wall - now.monotonic, Ordering::Relaxed);
        machine.look();
        machine
    }

    /// Another file says when the clock is synchronised, from the next look on.
    pub fn synchronised_by(&self, file: Option<PathBuf>) {
        *lock(&self.synchronised_file) = file;
    }

    /// Which boot this is; below 2^63.
    #[must_use]
    pub const fn boot(&self) -> u64 {
        self.boot
    }

    /// Reads the three clocks.
    #[must_use]
    pub fn moment(&self) -> Moment {
        let offset_ms = self.offset_ms.load(Ordering::Relaxed);
        Moment {
            wall: SystemClock::with_offset_ms(offset_ms).now_micros(),
            monotonic: self.monotonic(),
            is_synchronised: self.is_synchronised.load(Ordering::Relaxed),
        }
    }

    /// Looks at the files: to be called every second or so.
    pub fn look(&self) {
        if let Some(path) = &self.settings.offset_file
            && let Ok(text) = fs::read_to_string(path)
            && let Ok(offset_ms) = text.trim().parse()
        {
            self.offset_ms.store(offset_ms, Ordering::Relaxed);
        }
        let now = self.moment();
        let wall = now.wall - now.monotonic;
        if (wall - self.wall.load(Ordering::Relaxed)).abs() > JUMP {
            self.set_at.store(now.wall, Ordering::Relaxed);
        }
        self.wall.store(wall, Ordering::Relaxed);
        let is_synchronised = self.synchronised_at().is_some_and(|at| {
            // A daemon touches it just after it has set the clock.
            at.saturating_add(JUMP) >= self.set_at.load(Ordering::Relaxed) && at <= now.wall
        });
        self.is_synchronised
            .store(is_synchronised, Ordering::Relaxed);
    }

    /// When a time daemon last said that the clock is right.
    fn synchronised_at(&self) -> Option<i64> {
        let is_wrong = self.settings.offset_file.is_some() || self.settings.offset_ms != 0;
        let path = lock(&self.synchronised_file)
            .clone()
            .filter(|_| !is_wrong)?;
        let touched = fs::metadata(path).ok()?.modified().ok()?;
        let since = touched.duration_since(UNIX_EPOCH).ok()?;
        i64::try_from(since.as_micros()).ok()
    }

    fn monotonic(&self) -> i64 {
        let mut known = self.uptime.lock().unwrap_or_else(PoisonError::into_inner);
        if known.looked.elapsed() > LOOK_AGE_MAX {
            // Before the other clock: a thread that has to wait between the two has not slept.
            let uptime = uptime();
            known.looked = Instant::now();
            if let Some(uptime) = uptime {
                known.before += slept(uptime, known.before.saturating_add(self.since()));
            }
        }
        known.before.saturating_add(self.since())
    }

    /// How long the process runs, without sleep of the machine.
    fn since(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX)
    }
}

/// How long the machine slept that has been up so long, and by the process's clock `counted`.
const fn slept(uptime: i64, counted: i64) -> i64 {
    let slept = uptime.saturating_sub(counted);
    if slept > SLEPT { slept } else { 0 }
}

/// Time since boot, in microseconds.
fn uptime() -> Option<i64> {
    let text = fs::read_to_string(UPTIME).ok()?;
    let (seconds, hundredths) = text.split_whitespace().next()?.split_once('.')?;
    let seconds: i64 = seconds.parse().ok()?;
    let hundredths: i64 = hundredths.get(..2)?.parse().ok()?;
    Some(seconds * 1_000_000 + hundredths * 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(file: &std::path::Path) -> ClockSettings {
        ClockSettings {
            synchronised_file: Some(file.to_owned()),
            ..ClockSettings::default()
        }
    }

    #[test]
    fn a_time_daemons_file_counts_unless_the_clock_was_set_since() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("synchronized");
        let machine = Machine::new(settings(&file));
        assert!(!machine.moment().is_synchronised);
        fs::write(&file, "").unwrap();
        machine.look();
        assert!(machine.moment().is_synchronised);
        // Somebody sets the clock: the file is from before.
        let day = 86_400_000;
        machine.offset_ms.store(day, Ordering::Relaxed);
        machine.look();
        assert!(!machine.moment().is_synchronised);
        // The daemon sets it right again, and says so.
        machine.offset_ms.store(0, Ordering::Relaxed);
        fs::write(&file, "").unwrap();
        machine.look();
        assert!(machine.moment().is_synchronised);
        // A clock that is wrong on purpose is not synchronised.
        let wrong = ClockSettings {
            offset_ms: 1,
            ..settings(&file)
        };
        assert!(!Machine::new(wrong).moment().is_synchronised);
    }

    #[test]
    fn an_offset_changes_while_the_agent_runs() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("offset");
        let machine = Machine::new(ClockSettings {
            offset_file: Some(file.clone()),
            ..ClockSettings::default()
        });
        let before = machine.moment();
        fs::write(&file, "-3600000\n").unwrap();
        machine.look();
        let after = machine.moment();
        assert!(after.wall < before.wall - 3_500_000_000);
        assert!(after.monotonic >= before.monotonic);
    }

    #[test]
    fn only_sleep_moves_the_time_since_boot() {
        let second = 1_000_000;
        assert_eq!(slept(60 * second, 10 * second), 50 * second);
        // Hundredths, and a thread that had to wait before it looked at the other clock.
        assert_eq!(slept(10 * second + 10_000, 10 * second), 0);
        assert_eq!(slept(10 * second, 60 * second), 0);
    }

    #[test]
    fn time_since_boot_is_what_the_system_says() {
        let machine = Machine::new(ClockSettings::default());
        if let Some(uptime) = uptime() {
            assert!(machine.moment().monotonic.abs_diff(uptime) < 1_000_000);
        }
        let same = Machine::new(ClockSettings::default());
        assert_eq!(machine.boot() == same.boot(), fs::metadata(BOOT_ID).is_ok());
        let other = ClockSettings {
            boot: Some("another".to_owned()),
            ..ClockSettings::default()
        };
        assert_ne!(Machine::new(other).boot(), machine.boot());
    }
}
