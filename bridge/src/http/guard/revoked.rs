//! Tokens that were revoked: the database knows, and what it said is believed for a moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use schema::time::ReceivedAt;
use store::access::Presented;
use store::{Store, StoreError};

use crate::auth::Claims;

/// How old an answer may be: a revocation counts on every bridge within this time, and a query's.
const FRESH: Duration = Duration::from_secs(2);

/// Answers that are remembered; when there are more, all are asked for again.
const ANSWERS_MAX: usize = 10_000;

/// What is known of tokens.
#[derive(Debug)]
pub(super) struct Revoked {
    store: Arc<dyn Store>,
    answers: Mutex<HashMap<String, Answer>>,
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    /// For good.
    Revoked,
    /// When the database said so.
    InForce(Instant),
}

impl Revoked {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            answers: Mutex::default(),
        }
    }

    /// Whether a token was revoked. Without the database nobody knows, and nobody gets in.
    pub(super) async fn contains(&self, claims: &Claims) -> Result<bool, StoreError> {
        let jti = claims.jti.as_str();
        match self.known(jti) {
            Some(Answer::Revoked) => return Ok(true),
            Some(Answer::InForce(asked)) if asked.elapsed() < FRESH => return Ok(false),
            _ => {}
        }
        // Before the question: an answer is never taken for younger than it is.
        let asked = Instant::now();
        let issued = i64::try_from(claims.iat).unwrap_or(i64::MAX);
        let token = Presented {
            jti,
            subject: &claims.sub,
            issued_at: ReceivedAt::from_micros(issued.saturating_mul(1_000_000)),
        };
        let revoked = self.store.is_revoked(&token).await?;
        let answer = match revoked {
            true => Answer::Revoked,
            false => Answer::InForce(asked),
        };
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= ANSWERS_MAX {
            answers.clear();
        }
        answers.insert(jti.to_owned(), answer);
        Ok(revoked)
    }

    fn known(&self, jti: &str) -> Option<Answer> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(jti).copied()
    }
}
