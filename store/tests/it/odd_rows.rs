//! One row that makes no sense, by damage or somebody's hand: those who read the others read them, and nothing panics.
//! Damage to a text only the embedded store can show.

use schema::message::{Command, CommandId};
use store::StoreError;
use store::commands::{NewCommand, Queued};

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(a_configuration_with_an_odd_entry_is_not_sent_in_part);

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
        let listed = store.commands(&device("d"), 10).await.expect(odd);
        let ids: Vec<CommandId> = listed.iter().map(|known| known.command.id).collect();
        assert!(ids.contains(&new(1).command.id), "{odd}");
        assert!(ids.contains(&new(3).command.id), "{odd}");
        let back = format!(
            "UPDATE commands SET {column} = (SELECT {column} FROM commands WHERE id <> \
                 '{second}' LIMIT 1) WHERE id = '{second}'"
        );
        assert!(sql(&fixture, &back).await);
        assert_eq!(store.commands(&device("d"), 10).await.unwrap().len(), 3);
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
