//! Dead letters: payloads that could not be used, looked at, tried again, thrown away.

use schema::DeviceId;
use serde::{Deserialize, Serialize};
use utoipa::openapi::path::Operation;
use utoipa::{IntoParams, ToSchema};

use crate::Limit;
use crate::description::{answers, refuses};
use crate::endpoint::{Paged, endpoint, listing};
use crate::readings::Settlement;

/// Most letters of one answer.
pub const LETTERS_MAX: usize = 1_000;

endpoint! {
    /// Lists payloads that could not be used, latest first
    ListDeadLetters: GET "/api/v1/dead-letters", ReadFleet, "dead letters";
    query WhichLetters; answer DeadLetters
}

endpoint! {
    /// Shows a payload that could not be used
    ShowDeadLetter: GET "/api/v1/dead-letters/{letter}", ReadFleet, "dead letters";
    path OfLetter; answer LetterBody
}

endpoint! {
    /// Tries a payload again
    ///
    /// It is read and admitted by today's rules. What is committed is answered, and the letter is gone; when nothing of it
    /// can be, the letter stays.
    RetryDeadLetter: POST "/api/v1/dead-letters/{letter}/retry", Administer, "dead letters";
    path OfLetter; answer Settlement; also describe_retry
}

endpoint! {
    /// Throws a payload away
    DiscardDeadLetter: DELETE "/api/v1/dead-letters/{letter}", Administer, "dead letters";
    path OfLetter; answer (); status 204; also describe_discard
}

/// The dead letter that a path names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfLetter {
    /// Its name
    #[param(pattern = "^[0-9a-f]{16}\\.[A-Za-z0-9._-]{0,64}$")]
    pub letter: String,
}

/// Which dead letters are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WhichLetters {
    /// Of this device alone
    #[param(value_type = Option<String>)]
    pub device: Option<DeviceId>,
    /// The `next` of the page before
    pub after: Option<String>,
    /// At most so many
    #[param(value_type = Option<usize>, minimum = 1, maximum = 1_000)]
    pub limit: Option<Limit<LETTERS_MAX>>,
}

impl Paged for WhichLetters {
    const HAS_AFTER: bool = true;

    fn page(&mut self, limit: Limit, after: Option<String>) {
        self.limit = Some(Limit::clamped(limit.rows()));
        if after.is_some() {
            self.after = after;
        }
    }
}

/// Payloads that could not be used
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeadLetters {
    /// The entries of this page.
    pub dead_letters: Vec<LetterBody>,
    /// Where the next page begins, if there may be one: pass it as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// How many more came and were not kept, because a quota is used up; on the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_kept: Option<u64>,
}

/// A payload that could not be used
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LetterBody {
    /// Its name.
    pub id: String,
    /// Whose, when the topic told.
    pub device: Option<String>,
    /// The MQTT topic that it arrived under.
    pub topic: String,
    /// Why it is here.
    pub reason: String,
    /// When it last arrived.
    pub received_at: String,
    /// How often it arrived.
    pub times: u64,
    /// The payload's whole length; at most 65,536 bytes are kept.
    pub payload_bytes: u64,
    /// What is kept of it; in a list, its first 256 bytes.
    pub payload_hex: String,
}

listing!(DeadLetters.dead_letters: LetterBody);

fn describe_retry(operation: &mut Operation) {
    answers(operation, 200, "What became of its readings");
    refuses(
        operation,
        422,
        "It cannot be used today either; the letter stays.",
    );
}

fn describe_discard(operation: &mut Operation) {
    answers(operation, 204, "It is gone");
}
