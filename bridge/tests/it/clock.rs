//! Bridges judge by the database's time, whatever their own clocks say.

use std::time::Duration;

use daemon::{Clock as _, SystemClock};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use store::location::Location;

use testkit::database::{Fixture, behind_proxy, postgres};
use testkit::wait::{until, until_ok};

use crate::api::{Served, expect};

const TWO_DAYS_MS: i64 = 2 * 86_400_000;

/// One reading, taken now.
fn reading(epoch: &str) -> Value {
    let at = SystemClock::default().now_micros();
    json!({"epoch": epoch, "first_seq": 1, "readings": [
        {"sensor": "temperature", "observed_at": at, "value": 21.5},
    ]})
}

fn post(served: &Served) -> RequestBuilder {
    let body = reading("00c0ffee0003");
    served.request(Method::POST, READINGS).json(&body)
}

const READINGS: &str = "/api/v1/devices/press-7/readings";
const COMMANDS: &str = "/api/v1/devices/press-7/commands";

#[test]
fn a_bridge_with_a_wrong_clock_takes_readings_and_lets_commands_live() {
    postgres(|fixture: Fixture| async move {
        fixture.open().await.close().await;
        let url = fixture.url.clone().unwrap();
        for (epoch, offset_ms) in [
            ("00c0ffee0001", -TWO_DAYS_MS),
            ("00c0ffee0002", TWO_DAYS_MS),
        ] {
            let database = Location::parse(&url).unwrap();
            let served =
                Served::start_on(database, |config| config.clock_offset_ms = offset_ms).await;
            let post = served.request(Method::POST, READINGS);
            let answer = expect(post.json(&reading(epoch)), StatusCode::OK).await;
            assert_eq!(answer["rejected"], json!([]), "{answer}");
            assert_eq!(answer["committed"], json!([{"first": 1, "last": 1}]));
            let command = json!({"name": "ping", "ttl_seconds": 3600});
            let kept = served
                .send(Method::POST, COMMANDS, &command, StatusCode::CREATED)
                .await;
            let left =
                seconds(&kept["expires_at"]) - SystemClock::default().now_micros() / 1_000_000;
            assert!((3_500..3_700).contains(&left), "{left}: {kept}");
        }
    });
}

#[test]
fn without_the_databases_time_a_bridge_takes_nothing_and_says_so() {
    postgres(|fixture: Fixture| async move {
        fixture.open().await.close().await;
        let (proxy, database) = behind_proxy(fixture.url.as_ref().unwrap()).await;
        let served = Served::start_on(database, |_| {}).await;
        expect(post(&served), StatusCode::OK).await;
        // The database goes away, and this machine sleeps for an hour.
        proxy.set_up(false);
        served.store.clock().set_machine_offset_ms(3_600_000);
        let answer = expect(post(&served), StatusCode::SERVICE_UNAVAILABLE).await;
        assert!(
            answer["detail"].as_str().unwrap().contains("time"),
            "{answer}"
        );
        until_ok("its time is not known", async || {
            let ready = served.bare(Method::GET, "/readyz").send().await.unwrap();
            let text = ready.text().await.unwrap();
            let is_said = text.contains("database's time is not known");
            is_said.then_some(()).ok_or(text)
        })
        .await;
        proxy.set_up(true);
        until("it goes on", async || {
            post(&served).send().await.unwrap().status() == StatusCode::OK
        })
        .await;
        let now = served.store.clock().now().micros();
        let apart = Duration::from_micros(now.abs_diff(SystemClock::default().now_micros()));
        assert!(apart < Duration::from_secs(10), "{apart:?}");
    });
}

/// Seconds since the Unix epoch of an RFC 3339 time.
fn seconds(time: &Value) -> i64 {
    let format = &time::format_description::well_known::Rfc3339;
    let time = time::OffsetDateTime::parse(time.as_str().unwrap(), format);
    time.unwrap().unix_timestamp()
}
