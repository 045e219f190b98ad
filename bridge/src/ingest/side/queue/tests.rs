//! What waits, what is replaced and what comes again, step by step.

use schema::limits::{PAYLOAD_BYTES_MAX, REPORT_EPOCHS_MAX};
use schema::message::{CommandId, CommandProgress, CommandState, EpochAccount};
use schema::time::ReceivedAt;
use store::DeviceReport;
use store::commands::ProgressReport;

use super::*;

const NOW: Duration = Duration::from_secs(100);

fn queue() -> Queue<u32> {
    Queue::new(Bounds {
        entries: 6,
        bytes: 1_000,
        device_entries: 4,
        device_bytes: 400,
    })
}

fn offer(queue: &mut Queue<u32>, content: Content, bytes: usize, receipt: u32) -> Offered<u32> {
    queue.offer(content, bytes, Instant::now(), receipt)
}

fn presence(device: &str, session: u64, online: bool) -> Content {
    let status = match online {
        true => Status::Online {
            session,
            epoch: schema::Epoch::from_random(1),
            agent_version: "1.0.0".to_owned(),
        },
        false => Status::Offline { session },
    };
    Content::Presence(Presence {
        device: device.parse().unwrap(),
        status,
        received_at: ReceivedAt::from_micros(1),
    })
}

fn progress(device: &str, id: u128, state: CommandState) -> Content {
    Content::Progress(ProgressReport {
        device: device.parse().unwrap(),
        progress: CommandProgress {
            id: CommandId::from_bits(id),
            state,
            percent: 0,
            output: String::new(),
        },
        received_at: ReceivedAt::from_micros(1),
    })
}

fn sessions(entries: &[Entry<u32>]) -> Vec<(u64, bool)> {
    let session = |entry: &Entry<u32>| match &entry.content {
        Content::Presence(presence) => match presence.status {
            Status::Online { session, .. } => Some((session, true)),
            Status::Offline { session } => Some((session, false)),
        },
        _ => None,
    };
    entries.iter().filter_map(session).collect()
}

#[test]
fn what_comes_later_replaces_what_came_earlier_and_frees_its_receipt() {
    let mut queue = queue();
    assert_eq!(
        offer(&mut queue, presence("a", 1, true), 10, 1),
        Offered::Kept(None)
    );
    assert_eq!(
        offer(&mut queue, presence("a", 2, true), 10, 2),
        Offered::Kept(Some(1))
    );
    // The will of the connection that was replaced comes late: it is kept by saying nothing.
    assert_eq!(
        offer(&mut queue, presence("a", 1, false), 10, 3),
        Offered::Kept(Some(3))
    );
    assert_eq!(
        offer(&mut queue, presence("a", 2, false), 10, 4),
        Offered::Kept(None)
    );
    assert_eq!(sessions(&queue.take(NOW, 10)), [(2, true), (2, false)]);
    assert!(queue.take(NOW, 10).is_empty());
}

#[test]
fn a_birth_after_a_will_is_written_after_it() {
    let mut queue = queue();
    let _ = offer(&mut queue, presence("a", 1, false), 10, 1);
    let _ = offer(&mut queue, presence("a", 2, true), 10, 2);
    assert_eq!(sessions(&queue.take(NOW, 10)), [(1, false), (2, true)]);
}

#[test]
fn a_command_keeps_its_furthest_state() {
    let mut queue = queue();
    let _ = offer(&mut queue, progress("a", 1, CommandState::Succeeded), 10, 1);
    assert_eq!(
        offer(&mut queue, progress("a", 1, CommandState::Running), 10, 2),
        Offered::Kept(Some(2))
    );
    let _ = offer(&mut queue, progress("a", 2, CommandState::Running), 10, 3);
    assert_eq!(queue.take(NOW, 10).len(), 2);
}

#[test]
fn without_room_for_anybody_a_receipt_is_withheld_and_a_device_loses_its_own() {
    let mut queue = queue();
    for id in 0..4 {
        let _ = offer(&mut queue, progress("a", id, CommandState::Running), 10, 1);
    }
    assert_eq!(
        offer(&mut queue, progress("a", 9, CommandState::Running), 10, 9),
        Offered::OverShare(9)
    );
    assert_eq!(
        offer(&mut queue, progress("b", 1, CommandState::Running), 401, 2),
        Offered::OverShare(2)
    );
    let _ = offer(&mut queue, presence("b", 1, true), 10, 2);
    let _ = offer(&mut queue, presence("c", 1, true), 10, 3);
    assert_eq!(
        offer(&mut queue, presence("d", 1, true), 10, 4),
        Offered::Full(4)
    );
    // What is there already may be replaced.
    assert_eq!(
        offer(&mut queue, presence("c", 2, true), 10, 5),
        Offered::Kept(Some(3))
    );
    assert!(!queue.is_roomy());
    assert_eq!(queue.take(NOW, 10).len(), 6);
    assert!(queue.is_roomy() && queue.bytes == 0 && queue.shares.is_empty());
}

#[test]
fn progress_that_waits_costs_a_device_no_birth() {
    let mut queue = Queue::new(Bounds::default());
    for id in 0..16 {
        let kept = offer(
            &mut queue,
            progress("a", id, CommandState::Running),
            64 * 1024,
            1,
        );
        assert_eq!(kept, Offered::Kept(None));
    }
    assert_eq!(
        offer(&mut queue, progress("a", 16, CommandState::Running), 1, 2),
        Offered::OverShare(2)
    );
    for content in [
        presence("a", 1, true),
        presence("a", 1, false),
        report("a", 0..1),
    ] {
        assert_eq!(offer(&mut queue, content, 100, 3), Offered::Kept(None));
    }
    assert_eq!(queue.take(NOW, 100).len(), 19);
    assert!(queue.bytes == 0 && queue.shares.is_empty());
}

#[test]
fn a_birth_that_is_heard_twice_waits_for_its_will() {
    let mut queue = queue();
    for receipt in 1..=2 {
        let _ = offer(&mut queue, presence("a", 1, true), 10, receipt);
    }
    assert_eq!(
        offer(&mut queue, presence("a", 1, false), 10, 3),
        Offered::Kept(None)
    );
    assert_eq!(sessions(&queue.take(NOW, 10)), [(1, true), (1, false)]);
}

#[test]
fn a_will_is_dropped_of_a_session_that_was_replaced_and_of_no_other() {
    let mut queue = queue();
    for session in [1, 2, 1] {
        let _ = offer(&mut queue, presence("a", session, true), 10, 1);
    }
    // The birth of 1 came last: it is that session whose will counts.
    for (session, kept) in [(2, Offered::Kept(Some(9))), (1, Offered::Kept(None))] {
        let offered = offer(&mut queue, presence("a", session, false), 10, 9);
        assert_eq!(offered, kept, "{session}");
    }
}

fn report(device: &str, epochs: std::ops::Range<u64>) -> Content {
    let account = |number: u64| EpochAccount {
        epoch: schema::Epoch::from_random(number + 1),
        balance: schema::Balance::default(),
        evicted: Vec::new(),
        quarantined: Vec::new(),
        discarded: Vec::new(),
    };
    let report = schema::message::LedgerReport {
        device_time_ms: 0,
        clock: schema::message::ClockReport {
            state: schema::message::ClockState::Unverified,
            offset_ms: None,
        },
        epochs: epochs.map(account).collect(),
    };
    let received_at = ReceivedAt::from_micros(1);
    Content::Report(DeviceReport::new(
        device.parse().unwrap(),
        report,
        received_at,
    ))
}

/// Epochs of the one report that waits, and the bytes that it counts for.
fn waiting(queue: &Queue<u32>) -> (usize, usize) {
    let entry = queue.entries.values().next().unwrap();
    assert_eq!((queue.entries.len(), queue.bytes), (1, entry.bytes));
    match &entry.content {
        Content::Report(report) => (report.report.epochs.len(), entry.bytes),
        _ => panic!("no report"),
    }
}

#[test]
fn joined_reports_have_no_more_epochs_than_one_message() {
    let most = REPORT_EPOCHS_MAX as u64;
    for (second, epochs) in [(most - 2, 15), (most - 1, 16), (most, 16), (most + 1, 16)] {
        let mut queue = Queue::new(Bounds::default());
        let _ = offer(&mut queue, report("a", 0..most), 1_600, 1);
        let kept = offer(&mut queue, report("a", 100..101), 100, 2);
        assert_eq!(kept, Offered::Kept(Some(1)));
        assert_eq!(waiting(&queue), (16, 1_600));
        let mut queue = Queue::new(Bounds::default());
        let _ = offer(&mut queue, report("a", 0..1), 100, 1);
        let _ = offer(&mut queue, report("a", 1..1 + second), 100, 2);
        assert_eq!(waiting(&queue).0, epochs.max(second as usize));
    }
}

#[test]
fn a_report_that_comes_again_and_again_does_not_grow() {
    let mut queue = queue();
    for round in 0..100 {
        let kept = offer(&mut queue, report("a", round * 20..round * 20 + 8), 300, 1);
        assert!(matches!(kept, Offered::Kept(_)), "{round}: {kept:?}");
        assert!(waiting(&queue).0 <= 16 && waiting(&queue).1 <= 600);
    }
}

#[test]
fn joined_reports_keep_to_the_bytes_of_all_and_of_one_message() {
    // Of three epochs, two are left over: 200 bytes.
    for (bytes, fits) in [(799, true), (800, true), (801, false)] {
        let mut queue = queue();
        let _ = offer(&mut queue, report("a", 0..3), 300, 1);
        let offered = offer(&mut queue, report("a", 0..1), bytes, 2);
        match fits {
            true => {
                assert_eq!(offered, Offered::Kept(Some(1)));
                assert_eq!(waiting(&queue), (3, bytes + 200));
            }
            false => {
                assert_eq!(offered, Offered::Full(2));
                assert_eq!(waiting(&queue), (3, 300));
            }
        }
    }
    for (bytes, epochs) in [(201, 3), (200, 3), (199, 1)] {
        let mut queue = Queue::new(Bounds::default());
        let _ = offer(&mut queue, report("a", 0..3), 300, 1);
        let _ = offer(&mut queue, report("a", 0..1), PAYLOAD_BYTES_MAX - bytes, 2);
        assert_eq!(waiting(&queue).0, epochs, "{bytes}");
        assert!(waiting(&queue).1 <= PAYLOAD_BYTES_MAX);
    }
}

#[test]
fn what_was_acknowledged_is_put_back_with_or_without_room() {
    let mut queue = queue();
    let _ = offer(&mut queue, presence("a", 1, true), 10, 1);
    let taken = queue.take(NOW, 10).pop().unwrap();
    for device in ["b", "c", "d", "e", "f", "g"] {
        let _ = offer(&mut queue, presence(device, 1, true), 10, 2);
    }
    assert_eq!(
        offer(&mut queue, presence("h", 1, true), 10, 3),
        Offered::Full(3)
    );
    assert_eq!(queue.put_back(taken, "no", NOW), Some(1));
    assert_eq!(queue.take(NOW + AGAIN_MAX, 10).len(), 7);
}

#[test]
fn what_was_refused_comes_again_later_unless_something_newer_came() {
    let mut queue = queue();
    let _ = offer(&mut queue, presence("a", 1, true), 10, 1);
    let taken = queue.take(NOW, 10).pop().unwrap();
    assert_eq!(queue.put_back(taken, "no", NOW), Some(1));
    assert_eq!(queue.refused(), [(Kind::Presence, 1, "no")]);
    assert!(queue.take(NOW, 10).is_empty());
    assert_eq!(queue.next_due(), Some(NOW + AGAIN_FIRST));
    let taken = queue.take(NOW + AGAIN_FIRST, 10).pop().unwrap();
    let _ = offer(&mut queue, presence("a", 2, true), 10, 2);
    assert_eq!(queue.put_back(taken, "no", NOW), None);
    let taken = queue.take(NOW + AGAIN_MAX, 10);
    assert_eq!(sessions(&taken), [(2, true)]);
    assert_eq!(taken[0].receipt, Some(2));
    assert!(queue.refused().is_empty());
}
