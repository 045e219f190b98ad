//! Lists: page after page until the end, or until enough is there.

use api::{Endpoint, Limit, Listing, Paged, Request};
use daemon::Failure;
use serde_json::Value;

use super::{Answered, Api};

/// Entries of one page. The bridge allows 1,000 of each list at least.
const PAGE: usize = 1_000;

/// Entries of a list that the bridge gives in large pages, or in one piece.
const PAGE_MAX: usize = 10_000;

/// A list, as it is asked for.
#[derive(Debug)]
pub(crate) struct Pages<E: Endpoint> {
    request: Request<E>,
    /// Where the next page begins, as the bridge said.
    after: Option<String>,
    /// How many are still wanted.
    left: usize,
    /// How many are asked for at once.
    page: usize,
    ended: bool,
    cut: bool,
    not_kept: u64,
}

/// What a page of a list holds.
pub(crate) type EntryOf<E> = Answered<<<E as Endpoint>::Answer as Listing>::Entry>;

impl<E> Pages<E>
where
    E: Endpoint<Answer: Listing, Query: Paged>,
{
    /// At most `limit` entries of a list.
    pub(crate) fn new(request: Request<E>, limit: usize) -> Self {
        Self {
            request,
            after: None,
            left: limit,
            page: PAGE,
            ended: false,
            cut: false,
            not_kept: 0,
        }
    }

    /// As [`Self::new`], for a list that comes in large pages or in one piece.
    pub(crate) fn large(request: Request<E>, limit: usize) -> Self {
        Self {
            page: PAGE_MAX,
            ..Self::new(request, limit)
        }
    }

    /// All of a list that comes in one piece, however long it is.
    pub(crate) fn whole(request: Request<E>) -> Self {
        Self {
            page: usize::MAX,
            ..Self::new(request, usize::MAX)
        }
    }

    /// The next entries; `None` after the last.
    pub(crate) async fn next(&mut self, api: &mut Api) -> Result<Option<Vec<EntryOf<E>>>, Failure> {
        if self.ended || self.left == 0 {
            return Ok(None);
        }
        let wanted = self.left.min(self.page);
        self.request
            .page(Limit::clamped(wanted), self.after.clone());
        let mut answer = api.ask(&self.request).await?;
        let mut entries: Vec<EntryOf<E>> = match answer.raw[E::Answer::ENTRIES].take() {
            Value::Array(entries) => entries.into_iter().map(Answered::new).collect(),
            _ => Vec::new(),
        };
        let is_full = entries.len() >= wanted;
        entries.truncate(wanted);
        self.left -= entries.len();
        if let Some(not_kept) = answer.raw["not_kept"].as_u64() {
            self.not_kept = not_kept;
        }
        let next = answer.raw["next"].as_str().map(str::to_owned);
        // A place that this program cannot ask for would be the first page again.
        let is_known = next.is_some() && E::Query::HAS_AFTER;
        self.ended = !is_known;
        if is_known {
            self.after.clone_from(&next);
        }
        // A list in one piece does not say whether it is all.
        let may_be_more = next.is_some() || (is_full && self.page == PAGE_MAX);
        self.cut = may_be_more && (self.left == 0 || self.ended);
        Ok(Some(entries))
    }

    /// Whether the bridge may have more than was wanted.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    /// How many more there were than a quota let the bridge keep.
    pub(crate) fn not_kept(&self) -> u64 {
        self.not_kept
    }

    /// Where more begins, if the bridge said so.
    pub(crate) fn place(&self) -> Option<&str> {
        match self.ended {
            true => None,
            false => self.after.as_deref(),
        }
    }
}
