//! The database's time, by which a bridge judges.

use daemon::{Clock as _, SystemClock};
use testkit::contract;
use testkit::database::Fixture;

contract!(a_store_tells_the_time);

const TWO_DAYS_MS: i64 = 2 * 86_400_000;

async fn a_store_tells_the_time(fixture: Fixture) {
    let store = fixture.open().await;
    let clock = store.clock();
    assert_eq!(clock.is_known(), fixture.url.is_none());
    let now = SystemClock::default();
    store.sample_clock().await.unwrap();
    assert!(clock.is_known());
    let apart = |offset_ms: i64| {
        let expected = now.now_micros() + 1000 * offset_ms;
        clock.now().micros().abs_diff(expected) < 10_000_000
    };
    assert!(apart(0), "{:?}", clock.now());
    clock.set_machine_offset_ms(-TWO_DAYS_MS);
    if fixture.url.is_some() {
        assert!(!clock.is_known(), "this machine's clock jumped");
    }
    store.sample_clock().await.unwrap();
    assert!(clock.is_known());
    // A file has no other time than its machine's.
    let of_the_file = if fixture.url.is_none() {
        -TWO_DAYS_MS
    } else {
        0
    };
    assert!(apart(of_the_file), "{:?}", clock.now());
    store.close().await;
}
