//! One row that makes no sense, by damage or somebody's hand: those who read the others read them, and nothing panics.
//! Damage to a text only the embedded store can show.

use schema::message::{Command, CommandId};
use store::alerts::{Alert, AlertQuery, Finding, Rule};
use store::commands::{NewCommand, Queued};
use store::dead_letters::{LetterCursor, LetterQuery};
use store::groups::Group;
use store::{DeadLetter, KeptLetter, Store, StoreError};

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    a_configuration_with_an_odd_entry_is_not_sent_in_part,
    pages_go_on_behind_rows_that_make_no_sense,
);

const START: i64 = 1_800_000_000;

fn new(number: u64) -> NewCommand {
    NewCommand {
        device: device("d"),
        command: Command {
            id: CommandId::new(1_000 * START.unsigned_abs() + number, number.into()),
            name: "ping".to_owned(),
            arguments: "{}".to_owned(),
            expires_at_ms: 1_000 * (START + 3600),
            priority: 1,
        },
        created_at: at(START),
        created_by: "test".to_owned(),
        request: None,
    }
}

/// Does something to the file beside the store. Returns whether its constraints allow that.
async fn sql(fixture: &Fixture, statement: &str) -> bool {
    let database = libsql::Builder::new_local(fixture.file()).build().await;
    let connection = database.unwrap().connect().unwrap();
    connection.execute(statement, ()).await.is_ok()
}

#[test]
fn one_odd_row_stops_no_reader_of_the_others() {
    embedded(odd_rows);
}

async fn odd_rows(fixture: Fixture) {
    let store = fixture.open().await;
    for number in 1..=3 {
        let queued = store.queue_command(&new(number)).await.unwrap();
        assert!(matches!(queued, Queued::Kept), "{queued:?}");
    }
    let mut odd_ones = 0;
    for odd in [
        "state = 'flying'",
        "state = CAST(X'fffe' AS TEXT)",
        "arguments = CAST(X'ff' AS TEXT)",
        "priority = -1",
        "priority = 'high'",
        "created_by = X'ff'",
    ] {
        let (column, _) = odd.split_once(' ').unwrap();
        let second = new(2).command.id;
        let keep = format!("UPDATE commands SET sent_times = 0 WHERE id = '{second}'");
        assert!(sql(&fixture, &keep).await);
        let odd_one = format!("UPDATE commands SET {odd} WHERE id = '{second}'");
        if !sql(&fixture, &odd_one).await {
            continue;
        }
        odd_ones += 1;
        let listed = store.commands(&device("d"), None, 10).await.expect(odd);
        let ids: Vec<CommandId> = listed.iter().map(|known| known.command.id).collect();
        assert!(ids.contains(&new(1).command.id), "{odd}");
        assert!(ids.contains(&new(3).command.id), "{odd}");
        let back = format!(
            "UPDATE commands SET {column} = (SELECT {column} FROM commands WHERE id <> \
                 '{second}' LIMIT 1) WHERE id = '{second}'"
        );
        assert!(sql(&fixture, &back).await);
        assert_eq!(
            store.commands(&device("d"), None, 10).await.unwrap().len(),
            3
        );
    }
    // What is of another type the table itself keeps out.
    assert_eq!(odd_ones, 4);
    let odd = format!(
        "UPDATE commands SET arguments = CAST(X'ff' AS TEXT) WHERE id = '{}'",
        new(2).command.id
    );
    assert!(sql(&fixture, &odd).await);
    let due = store.claim_commands(at(START + 1), 10).await.unwrap();
    assert_eq!(due.len(), 2, "{due:?}");
}

/// A configuration that lacks an entry would take that setting back.
async fn a_configuration_with_an_odd_entry_is_not_sent_in_part(fixture: Fixture) {
    let store = fixture.open().await;
    let devices = [device("d"), device("e")];
    for name in ["d", "e"] {
        configure(&*store, name, &[("a", "1"), ("b", "1")], &alice(START)).await;
    }
    let made = store.config(&devices[0]).await.unwrap().desired;
    assert_eq!(store.documents(&devices).await.unwrap().len(), 2);
    let mut odd_ones = vec!["hlc = -1"];
    if fixture.url.is_none() {
        odd_ones.push("hlc = 1, value = CAST(X'ff' AS TEXT)");
    }
    for odd in odd_ones {
        let odd_one = format!("UPDATE device_config SET {odd} WHERE device_id = 'd' AND key = 'a'");
        fixture.sql(&odd_one).await;
        let sent = store.documents(&devices).await.unwrap();
        let sent: Vec<_> = sent
            .iter()
            .map(|(device, document)| (device.as_str(), document.entries.len()))
            .collect();
        assert_eq!(sent, [("e", 2)], "{odd}");
        // A person is shown the others where nobody else mends the database.
        let shown = store.config(&devices[0]).await.map(|config| config.desired);
        match &fixture.url {
            None => assert_eq!(shown.unwrap(), made[1..], "{odd}"),
            Some(_) => assert!(
                matches!(shown, Err(StoreError::Unreadable { .. })),
                "{shown:?}"
            ),
        }
    }
}

/// Rows of each list, and of each page.
const ROWS: usize = 8;
const PAGE: usize = 3;

/// Reads a list as its readers do, until a page has fewer rows than were asked for.
macro_rules! paged {
    ($row:ty, |$last:ident| $page:expr) => {{
        let mut all: Vec<$row> = Vec::new();
        loop {
            let $last = all.last();
            let found = $page.await?;
            let is_last = found.len() < PAGE;
            all.extend(found);
            if is_last {
                break all.into_iter();
            }
        }
    }};
}

/// What names the rows of a list.
async fn names(store: &dyn Store, table: &str) -> Result<Vec<String>, StoreError> {
    let limit = PAGE;
    Ok(match table {
        "alerts" => paged!(Alert, |last| {
            let after = last.map(|alert| (alert.opened_at, alert.id.clone()));
            let query = AlertQuery {
                after,
                limit,
                ..AlertQuery::default()
            };
            async move { store.alerts(&query).await }
        })
        .map(|alert| alert.id)
        .collect(),
        "dead_letters" => paged!(KeptLetter, |last| {
            let after = last.map(|kept| LetterCursor {
                received_at: kept.letter.received_at,
                id: kept.id.clone(),
            });
            let query = LetterQuery {
                device: None,
                after,
                limit,
            };
            async move { store.letters(&query).await }
        })
        .filter_map(|kept| Some(kept.id.device?.to_string()))
        .collect(),
        _ => paged!(Group, |last| store
            .groups(last.map(|group| &group.name), limit))
        .map(|group| group.name.to_string())
        .collect(),
    })
}

/// A page that is shorter than its limit is taken for the last one.
async fn pages_go_on_behind_rows_that_make_no_sense(fixture: Fixture) {
    let store = fixture.open().await;
    for n in 0..ROWS {
        let name = format!("d-{n}");
        label(&*store, &name, &[("group", &name)]).await;
        let of = Some(device(&name));
        let finding = Finding {
            device: of.clone(),
            detail: "it is away".to_owned(),
        };
        let found = [finding];
        let raised = store.raise(Rule::DeviceOffline, &found, at(START));
        raised.await.unwrap();
        let letter = DeadLetter {
            device: of,
            topic: "t".to_owned(),
            payload: "x".into(),
            reason: "it is odd".to_owned(),
            received_at: at(START),
        };
        store.keep_dead_letters(&[letter]).await.unwrap();
    }
    for (table, key, odd, sound) in [
        (
            "alerts",
            "id",
            "rule = 'nonsense'",
            "rule = 'device_offline'",
        ),
        (
            "dead_letters",
            "device_id",
            "payload_bytes = -1",
            "payload_bytes = 1",
        ),
        // No name has a control character; it stands where it stood.
        (
            "device_labels",
            "device_id",
            "value = value || '\u{1}'",
            "value = device_id",
        ),
    ] {
        let all = names(&*store, table).await.unwrap();
        assert_eq!(all.len(), ROWS, "{table}");
        // In the middle of a page, at its end and at its beginning, over it, all that is behind, and all.
        for rows in [1..2, 2..3, 3..4, 2..4, 3..6, 1..7, 5..8, 0..8] {
            let of = all[rows.clone()].join("', '");
            let set = |to: &str| format!("UPDATE {table} SET {to} WHERE {key} IN ('{of}')");
            fixture.sql(&set(odd)).await;
            let found = names(&*store, table).await;
            match &fixture.url {
                None => {
                    let (before, behind) = (&all[..rows.start], &all[rows.end..]);
                    assert_eq!(
                        found.unwrap(),
                        [before, behind].concat(),
                        "{table} {rows:?}"
                    );
                }
                // Nobody takes a part for the whole.
                Some(_) => assert!(
                    matches!(found, Err(StoreError::Unreadable { .. })),
                    "{table} {rows:?}: {found:?}"
                ),
            }
            fixture.sql(&set(sound)).await;
            assert_eq!(names(&*store, table).await.unwrap(), all, "{table}");
        }
    }
}
