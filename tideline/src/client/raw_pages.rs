//! Lists: page after page until the end, or until enough is there.

use daemon::Failure;
use serde_json::Value;

use super::{Api, Path};

/// Entries of one page. The bridge allows 1,000 of each list at least.
const PAGE: usize = 1_000;

/// Entries of a list that the bridge gives in large pages, or in one piece.
const PAGE_MAX: usize = 10_000;

/// A list, as it is asked for.
#[derive(Debug)]
pub(crate) struct RawPages {
    path: Path,
    /// Under which name the answers hold the entries.
    key: &'static str,
    /// How many are still wanted.
    left: usize,
    /// How many are asked for at once.
    page: usize,
    ended: bool,
    cut: bool,
}

impl RawPages {
    /// At most `limit` entries of the list at a path.
    pub(crate) fn new(path: Path, key: &'static str, limit: usize) -> Self {
        Self {
            path,
            key,
            left: limit,
            page: PAGE,
            ended: false,
            cut: false,
        }
    }

    /// As [`Self::new`], for a list that comes in large pages or in one piece.
    pub(crate) fn large(path: Path, key: &'static str, limit: usize) -> Self {
        Self {
            page: PAGE_MAX,
            ..Self::new(path, key, limit)
        }
    }

    /// Goes on behind where another list ended.
    pub(crate) fn after(mut self, place: Option<&str>) -> Self {
        if let Some(place) = place {
            self.path.replace("after", place.to_owned());
        }
        self
    }

    /// The next entries; `None` after the last.
    pub(crate) async fn next(&mut self, api: &mut Api) -> Result<Option<Vec<Value>>, Failure> {
        if self.ended || self.left == 0 {
            return Ok(None);
        }
        let asked = self.left.min(self.page);
        self.path.replace("limit", asked.to_string());
        let mut answer = api.get(&self.path).await?;
        let mut entries = match answer[self.key].take() {
            Value::Array(entries) => entries,
            _ => Vec::new(),
        };
        let is_full = entries.len() >= asked;
        entries.truncate(asked);
        self.left -= entries.len();
        match answer["next"].as_str() {
            Some(next) => self.path.replace("after", next.to_owned()),
            None => self.ended = true,
        }
        // A list in one piece does not say whether it is all.
        let may_be_more = !self.ended || (is_full && self.page == PAGE_MAX);
        self.cut = self.left == 0 && may_be_more;
        Ok(Some(entries))
    }

    /// Whether the bridge may have more than was wanted.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    /// Where more begins, if the bridge said so.
    pub(crate) fn place(&self) -> Option<&str> {
        match self.ended {
            true => None,
            false => self.path.value("after"),
        }
    }
}
