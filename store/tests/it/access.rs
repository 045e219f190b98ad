//! Revoked tokens, and the audit.

use std::collections::BTreeSet;

use store::access::{AuditEntry, Presented, Revocation, SubjectRevocation};

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    a_token_is_revoked_until_it_ends,
    all_tokens_of_somebody_are_revoked_up_to_a_moment,
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
    let is_revoked = async |jti| store.is_revoked(&shown(jti, "bob", 0)).await.unwrap();
    assert!(!is_revoked("a").await);
    for token in [revocation("a", 10), revocation("b", 20)] {
        store.revoke(&token).await.unwrap();
    }
    // A second time nothing changes.
    let again = Revocation {
        reason: "again".to_owned(),
        ..revocation("a", 99)
    };
    store.revoke(&again).await.unwrap();
    assert!(is_revoked("a").await);
    assert!(!is_revoked("c").await);
    let all = store.revocations(None, 10).await.unwrap();
    assert_eq!(all, [revocation("a", 10), revocation("b", 20)]);
    let behind = store.revocations(Some("a"), 10).await.unwrap();
    assert_eq!(behind, [revocation("b", 20)]);
    assert_eq!(store.revocations(None, 1).await.unwrap().len(), 1);
    let forget = async |now, revoked| {
        let gone = store.forget_access(at(now), at(revoked), None).await;
        gone.unwrap()
    };
    assert_eq!(forget(10, 2).await, 0);
    // The end may have been said wrongly: it is not forgotten while any token of then is good.
    assert_eq!(forget(99, 1).await, 0);
    assert_eq!(forget(11, 2).await, 1);
    assert!(!is_revoked("a").await);
    assert!(is_revoked("b").await);
}

fn shown<'t>(jti: &'t str, subject: &'t str, issued: i64) -> Presented<'t> {
    Presented {
        jti,
        subject,
        issued_at: at(issued),
    }
}

async fn all_tokens_of_somebody_are_revoked_up_to_a_moment(fixture: Fixture) {
    let store = fixture.open().await;
    let is_revoked = async |subject: &str, issued| {
        let token = shown("t", subject, issued);
        store.is_revoked(&token).await.unwrap()
    };
    let until = |subject: &str, seconds| SubjectRevocation {
        subject: subject.to_owned(),
        issued_until: at(seconds),
        reason: "left".to_owned(),
        revoked_at: at(seconds),
        revoked_by: "alice".to_owned(),
    };
    assert!(!is_revoked("bob", 10).await);
    // The later moment counts, in whichever order they come.
    for seconds in [10, 20, 15] {
        store.revoke_subject(&until("bob", seconds)).await.unwrap();
    }
    store.revoke_subject(&until("Carl", 30)).await.unwrap();
    for (subject, issued, expected) in [
        ("bob", 0, true),
        ("bob", 20, true),
        ("bob", 21, false),
        ("Bob", 0, false),
        ("Carl", 30, true),
        // A token may say any time.
        ("bob", i64::MAX / 1_000_000, false),
    ] {
        assert_eq!(
            is_revoked(subject, issued).await,
            expected,
            "{subject} {issued}"
        );
    }
    let all = store.revoked_subjects(None, 10).await.unwrap();
    assert_eq!(all, [until("Carl", 30), until("bob", 20)]);
    let behind = store.revoked_subjects(Some("Carl"), 10).await.unwrap();
    assert_eq!(behind, [until("bob", 20)]);
    // Forgotten when no token of then can be good any more.
    let forget = async |now, revoked| {
        let gone = store.forget_access(at(now), at(revoked), None).await;
        gone.unwrap()
    };
    assert_eq!(forget(1_000, 20).await, 0);
    assert_eq!(forget(1_000, 21).await, 1);
    assert!(!is_revoked("bob", 0).await && is_revoked("Carl", 0).await);
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
    assert_eq!(
        store
            .forget_access(at(0), at(0), Some(at(1)))
            .await
            .unwrap(),
        2
    );
    assert_eq!(store.audit_log(None, 10).await.unwrap().len(), 4);
}
