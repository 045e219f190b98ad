//! Revoked tokens, and the audit.

use std::collections::BTreeSet;

use bridge::store::access::{AuditEntry, Revocation};

use super::contract;
use super::fixture::*;

contract!(
    a_token_is_revoked_until_it_ends,
    the_audit_is_read_latest_first_page_by_page,
);

fn revocation(jti: &str, ends: i64) -> Revocation {
    Revocation {
        jti: jti.to_owned(),
        subject: "bob".to_owned(),
        reason: "lost".to_owned(),
        revoked_at: at(1),
        revoked_by: "alice".to_owned(),
        expires_at: at(ends),
    }
}

async fn a_token_is_revoked_until_it_ends(fixture: Fixture) {
    let store = fixture.open().await;
    assert!(!store.is_revoked("a").await.unwrap());
    for token in [revocation("a", 10), revocation("b", 20)] {
        store.revoke(&token).await.unwrap();
    }
    // A second time nothing changes.
    let again = Revocation {
        reason: "again".to_owned(),
        ..revocation("a", 99)
    };
    store.revoke(&again).await.unwrap();
    assert!(store.is_revoked("a").await.unwrap());
    assert!(!store.is_revoked("c").await.unwrap());
    let all = store.revocations(None, 10).await.unwrap();
    assert_eq!(all, [revocation("a", 10), revocation("b", 20)]);
    let behind = store.revocations(Some("a"), 10).await.unwrap();
    assert_eq!(behind, [revocation("b", 20)]);
    assert_eq!(store.revocations(None, 1).await.unwrap().len(), 1);
    assert_eq!(store.forget_access(at(10), None).await.unwrap(), 0);
    assert_eq!(store.forget_access(at(11), None).await.unwrap(), 1);
    assert!(!store.is_revoked("a").await.unwrap());
    assert!(store.is_revoked("b").await.unwrap());
}

async fn the_audit_is_read_latest_first_page_by_page(fixture: Fixture) {
    let store = fixture.open().await;
    store.audit(&[]).await.unwrap();
    // Three moments with two entries each.
    let entries: Vec<AuditEntry> = (0..6)
        .map(|number| AuditEntry {
            at: at(number / 2),
            actor: "alice".to_owned(),
            action: format!("action {number}"),
            target: "/path".to_owned(),
            address: "127.0.0.1".to_owned(),
            outcome: "200".to_owned(),
        })
        .collect();
    store.audit(&entries).await.unwrap();
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = store.audit_log(after, 4).await.unwrap();
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        found.extend(page.into_iter().map(|(_, entry)| entry));
    }
    assert!(found.is_sorted_by_key(|entry| std::cmp::Reverse(entry.at)));
    let actions = |of: &[AuditEntry]| -> BTreeSet<String> {
        of.iter().map(|entry| entry.action.clone()).collect()
    };
    assert_eq!(found.len(), 6);
    assert_eq!(actions(&found), actions(&entries));
    assert_eq!(store.forget_access(at(0), Some(at(1))).await.unwrap(), 2);
    assert_eq!(store.audit_log(None, 10).await.unwrap().len(), 4);
}
