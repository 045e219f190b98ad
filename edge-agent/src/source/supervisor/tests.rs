use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use daemon::{Class, SystemClock};
use schema::{ObservedAt, Quality, Reading, Value};
use tokio::sync::mpsc;

use super::*;
use crate::buffer::{Append, Sample};
use crate::sensors::Sensors;
use crate::source::shape::{Aggregate, Rule, WindowRule};
use crate::source::{Report, SourceConfig, SourceState, SourceStatus};

/// What a source does in each of its runs; the last for ever.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Does {
    Fails,
    Panics,
    Reads,
    Hangs,
    /// Comes back after so many milliseconds.
    Dawdles(u64),
    Ends,
}

#[derive(Debug)]
struct Odd {
    runs: AtomicU32,
    does: Vec<Does>,
}

#[async_trait]
impl Source for Odd {
    fn kind(&self) -> &'static str {
        "odd"
    }

    fn describe(&self) -> String {
        format!("{:?}", self.does)
    }

    async fn run(self: Arc<Self>, outlet: Outlet, stop: CancellationToken) -> Result<(), Failure> {
        let run = self.runs.fetch_add(1, Ordering::Relaxed) as usize;
        let does = self.does[run.min(self.does.len() - 1)];
        match does {
            Does::Fails => return Err(Failure::new(Class::Network, "reach the press")),
            Does::Panics => panic!("a bug"),
            Does::Ends => return Ok(()),
            Does::Reads | Does::Hangs | Does::Dawdles(_) => {}
        }
        let mut polls = outlet.polls();
        while polls.next(&stop).await.is_some() {
            match does {
                Does::Hangs => std::future::pending().await,
                Does::Dawdles(ms) => sleep(Duration::from_millis(ms)).await,
                _ => {}
            }
            let reading = Reading {
                sensor: "s".parse().unwrap(),
                observed_at: ObservedAt::from_millis(1),
                value: Value::I64(1),
                quality: Quality::Good,
            };
            outlet.append(Append::read(vec![reading])).await.unwrap();
        }
        Ok(())
    }
}

/// Quick, but for one that is stalled.
const PATIENCE: Patience = Patience {
    backoff: (Duration::from_millis(4), Duration::from_millis(16)),
    good_run: Duration::from_secs(3_600),
    stalled: Duration::from_secs(60),
    stop: Duration::from_millis(100),
};

/// A poll may take half more than its interval.
const INTERVAL: Duration = Duration::from_millis(60);

struct Rig {
    report: Arc<Report>,
    samples: mpsc::Receiver<Vec<Sample>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    source: Arc<Odd>,
}

fn start(does: &[Does], patience: Patience, change: impl FnOnce(&mut SourceConfig)) -> Rig {
    let source = Arc::new(Odd {
        runs: AtomicU32::new(0),
        does: does.to_vec(),
    });
    let mut config = SourceConfig::new(
        "odd",
        Odd {
            runs: AtomicU32::new(0),
            does: Vec::new(),
        },
    )
    .unwrap();
    config.interval = Some(INTERVAL);
    config.timeout = Some(INTERVAL / 4);
    change(&mut config);
    let report = Arc::new(Report::new(config.name.clone(), "odd"));
    let (sender, samples) = mpsc::channel(64);
    let outlet = Outlet::shown(
        &config,
        Arc::clone(&report),
        sender,
        Arc::new(SystemClock::default()),
        Sensors::default(),
    );
    let stop = CancellationToken::new();
    let supervised = supervise(
        Arc::clone(&source) as Arc<dyn Source>,
        outlet,
        patience,
        stop.clone(),
    );
    Rig {
        report,
        samples,
        stop,
        task: tokio::spawn(supervised),
        source,
    }
}

impl Rig {
    async fn until(&self, is: impl Fn(&SourceStatus) -> bool) -> SourceStatus {
        for _ in 0..20_000 {
            let status = self.report.status();
            if is(&status) {
                return status;
            }
            sleep(Duration::from_millis(1)).await;
        }
        panic!("never: {:?}", self.report.status());
    }

    async fn stopped(self) -> Vec<Vec<Sample>> {
        self.stop.cancel();
        self.task.await.unwrap();
        assert_eq!(self.report.status().state, SourceState::Stopped);
        let mut samples = self.samples;
        let mut all = Vec::new();
        while let Some(some) = samples.recv().await {
            all.push(some);
        }
        all
    }
}

fn is_running(status: &SourceStatus) -> bool {
    status.state == SourceState::Running
}

#[tokio::test]
async fn errors_and_panics_are_a_state_and_tried_again() {
    let does = [Does::Fails, Does::Fails, Does::Panics, Does::Reads];
    let slower = Patience {
        backoff: (Duration::from_millis(200), Duration::from_millis(200)),
        ..PATIENCE
    };
    let rig = start(&does, slower, |_| {});
    let failing = rig.until(|status| status.tries == 2).await;
    assert_eq!(failing.state, SourceState::Failing);
    assert_eq!(failing.last_error.unwrap(), "failed to reach the press");
    assert!(failing.failing_since_ms.is_some());
    let panicked = rig.until(|status| status.tries == 3).await;
    assert!(panicked.last_error.unwrap().contains("a bug"));
    let running = rig.until(is_running).await;
    assert_eq!((running.tries, running.failing_since_ms), (0, None));
    assert!(
        running.last_error.is_some(),
        "what was wrong stays to be read"
    );
    assert_eq!(rig.source.runs.load(Ordering::Relaxed), 4);
    assert!(!rig.stopped().await.is_empty());
}

#[tokio::test]
async fn tries_are_bounded_in_both_ways() {
    let rig = start(&[Does::Fails], PATIENCE, |_| {});
    let begun = Instant::now();
    rig.until(|status| status.tries >= 20).await;
    // Pauses of 4, 8 and then 16 ms, each drawn from a tenth of it at least.
    let least = Duration::from_micros(100 * (4 + 8 + 17 * 16));
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    rig.stopped().await;
}

#[tokio::test]
async fn one_that_hangs_is_stalled_then_left_behind_and_run_anew() {
    let patience = Patience {
        stalled: Duration::from_millis(50),
        backoff: (Duration::from_millis(100), Duration::from_millis(100)),
        ..PATIENCE
    };
    let rig = start(&[Does::Hangs, Does::Reads], patience, |_| {});
    let stalled = rig
        .until(|status| status.state == SourceState::Stalled)
        .await;
    assert!(
        stalled
            .last_error
            .unwrap()
            .contains("nothing came of it within 90ms")
    );
    let left = rig
        .until(|status| status.state == SourceState::Failing)
        .await;
    assert!(left.last_error.unwrap().contains("left behind"));
    rig.until(|status| status.readings.accepted > 0).await;
    assert!(rig.source.runs.load(Ordering::Relaxed) >= 2);
    rig.stopped().await;
}

#[tokio::test]
async fn one_that_is_slow_comes_back_by_itself() {
    let rig = start(&[Does::Dawdles(400)], PATIENCE, |_| {});
    rig.until(|status| status.state == SourceState::Stalled)
        .await;
    let back = rig.until(is_running).await;
    assert_eq!(back.tries, 0);
    assert_eq!(rig.source.runs.load(Ordering::Relaxed), 1);
    rig.stopped().await;
}

#[tokio::test]
async fn one_that_waits_for_its_interval_is_not_stalled() {
    let rig = start(&[Does::Reads], PATIENCE, |config| {
        config.interval = Some(Duration::from_secs(86_400));
        config.timeout = Some(Duration::from_millis(1));
    });
    rig.until(|status| status.readings.accepted == 1).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(rig.report.status().state, SourceState::Running);
    rig.stopped().await;
}

#[tokio::test]
async fn one_with_no_more_to_read_is_stopped_and_not_run_again() {
    let rig = start(&[Does::Ends], PATIENCE, |_| {});
    let status = rig
        .until(|status| status.state == SourceState::Stopped)
        .await;
    assert_eq!(status.last_error, None);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(rig.source.runs.load(Ordering::Relaxed), 1);
    rig.stopped().await;
}

#[tokio::test]
async fn one_that_does_not_stop_is_left_behind() {
    let rig = start(&[Does::Hangs], PATIENCE, |_| {});
    rig.until(|status| status.state == SourceState::Stalled)
        .await;
    let begun = Instant::now();
    rig.stopped().await;
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn windows_end_by_the_time_and_with_the_source() {
    let window = WindowRule {
        length: Duration::from_millis(300),
        aggregate: Aggregate::Last,
    };
    let windowed = |config: &mut SourceConfig| {
        config.interval = Some(Duration::from_millis(20));
        config.shaping.rules = vec![Rule {
            window: Some(window),
            ..Rule::of("*".parse().unwrap())
        }];
    };
    let rig = start(&[Does::Reads], PATIENCE, windowed);
    // All of its readings have one time, in 1970; their window is as long as it would be now.
    let status = rig.until(|status| status.readings.accepted == 1).await;
    assert!(status.readings.dropped_by_shaping >= 2, "{status:?}");
    let counted = status.readings.dropped_by_shaping;
    rig.until(|status| status.readings.dropped_by_shaping > counted)
        .await;
    assert!(rig.stopped().await.len() >= 2, "another when it stopped");
}

#[tokio::test]
async fn what_is_above_the_rate_is_counted() {
    let rig = start(&[Does::Reads], PATIENCE, |config| {
        config.readings_per_second_max = std::num::NonZeroU32::new(2);
        config.interval = Some(Duration::from_millis(5));
    });
    let begun = Instant::now();
    let status = rig
        .until(|status| status.readings.dropped_by_rate >= 20)
        .await;
    // Two at once, and two in each second.
    let most = 3 + 2 * begun.elapsed().as_secs() + 2;
    assert!((2..=most).contains(&status.readings.accepted), "{status:?}");
    assert_eq!(status.state, SourceState::Running);
    rig.stopped().await;
}
