//! A reading that the bridge will not store, with real processes: kept on its device, told of at both
//! ends, offered again, and given up by a person.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use daemon::{Clock, SystemClock};
use loadtest::stack::device;
use serde_json::{Value, json};

use crate::commands::{Fleet, get, until};

/// Sends lines to an agent, and waits until it has taken each.
fn hand_over(fleet: &Fleet, lines: &[Value]) {
    let mut stream = UnixStream::connect(fleet.stack.socket(0)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for line in lines {
        writeln!(stream, "{line}").unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["accepted"].is_u64(), "{line}: {answer}");
    }
}

async fn ledger(fleet: &Fleet) -> Value {
    let api = &fleet.api;
    let url = format!("{api}/api/v1/devices/{}/ledger?verify=true", device(0));
    get(&url).await.unwrap_or_default()
}

/// Waits until the ledger counts so many in quarantine and as discarded beside the two that are
/// committed, and has nothing to say against it.
async fn counts(fleet: &Fleet, quarantined: u64, discarded: u64) -> Value {
    let committed = 2;
    until("both ends agree", async || {
        let found = ledger(fleet).await;
        let balance = &found["balance"];
        found["balanced"] == true
            && balance["committed"] == committed
            && balance["quarantined"] == quarantined
            && balance["discarded"] == discarded
            && balance["pending"] == 0
    })
    .await;
    ledger(fleet).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_reading_is_kept_offered_again_and_given_up() {
    let fleet = Fleet::start(1).await;
    // More than a day ahead: no bridge stores that, and no device frees it.
    let now = SystemClock::default().now_ms();
    let ahead = now + 2 * 86_400_000;
    hand_over(
        &fleet,
        &[
            json!({"sensor": "a", "value": 1}),
            json!({"sensor": "a", "value": 2, "observed_at": ahead}),
            json!({"sensor": "a", "value": 3, "observed_at": ahead + 1}),
            json!({"sensor": "a", "value": 4}),
        ],
    );
    let found = counts(&fleet, 2, 0).await;
    let held = found["quarantined"].as_array().unwrap();
    assert!(
        held.iter().all(|held| held["reason"] == "too_new"),
        "{found}"
    );

    // Offered again, it is judged anew: still too far ahead.
    let requeue = json!({"name": "requeue", "arguments": {"reason": "too_new"}});
    let requeued = fleet.ask(0, &requeue).await;
    fleet.state(&requeued, "succeeded").await;
    counts(&fleet, 2, 0).await;

    let discard = json!({"name": "discard", "arguments": {"reason": "too_new"}});
    let discarded = fleet.ask(0, &discard).await;
    fleet.state(&discarded, "succeeded").await;
    let found = counts(&fleet, 0, 2).await;
    let gone = found["discarded"].as_array().unwrap();
    assert!(gone.iter().all(|gone| gone["by"] == "person"), "{found}");
    assert_eq!(found["counted"]["verdict"], "sound", "{found}");
}
