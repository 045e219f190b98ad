//! Which form an answer has: what `format` says, or else the best of what `Accept` allows.

use api::media::{ARROW, CSV, JSON};
use axum::http::{HeaderMap, header};

/// A form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Csv,
    Arrow,
}

impl Format {
    /// All forms, the one that is taken when nothing is asked for first.
    pub(crate) const ALL: [Self; 3] = [Self::Json, Self::Csv, Self::Arrow];

    /// As it stands in `format`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Arrow => "arrow",
        }
    }

    /// As it stands in `Accept`.
    pub(crate) const fn media_type(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Csv => CSV,
            Self::Arrow => ARROW,
        }
    }

    /// As it stands in `Content-Type`.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::Json | Self::Arrow => self.media_type(),
        }
    }

    /// The best of `allowed`, the first of which is preferred, that the caller accepts.
    pub(crate) fn accepted(headers: &HeaderMap, allowed: &[Self]) -> Option<Self> {
        let mut ranges = headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|range| !range.is_empty())
            .peekable();
        if ranges.peek().is_none() {
            return allowed.first().copied();
        }
        let ranges: Vec<(&str, u16)> = ranges.filter_map(weighted).collect();
        let mut best: Option<(Self, u16)> = None;
        for &format in allowed {
            let weight = weight_of(format, &ranges);
            if weight > best.map_or(0, |(_, weight)| weight) {
                best = Some((format, weight));
            }
        }
        best.map(|(format, _)| format)
    }
}

/// A media range and its weight in thousandths; `None` for what is no range.
fn weighted(range: &str) -> Option<(&str, u16)> {
    let mut parts = range.split(';').map(str::trim);
    let name = parts.next().filter(|name| name.contains('/'))?;
    let mut weight = 1000;
    for part in parts {
        if let Some(text) = part.strip_prefix("q=").or(part.strip_prefix("Q=")) {
            let quality: f32 = text.parse().ok()?;
            weight = (quality.clamp(0.0, 1.0) * 1000.0) as u16;
        }
    }
    Some((name, weight))
}

/// The weight of the most specific range that names the format.
fn weight_of(format: Format, ranges: &[(&str, u16)]) -> u16 {
    let media_type = format.media_type();
    let (kind, _) = media_type.split_once('/').unwrap_or_default();
    let names: [&dyn Fn(&str) -> bool; 3] = [
        &|range| range.eq_ignore_ascii_case(media_type),
        &|range| {
            range
                .split_once('/')
                .is_some_and(|(of, rest)| of.eq_ignore_ascii_case(kind) && rest == "*")
        },
        &|range| range == "*/*",
    ];
    for is_named in names {
        if let Some((_, weight)) = ranges.iter().find(|(range, _)| is_named(range)) {
            return *weight;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accepted(accept: &str) -> Option<Format> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        Format::accepted(&headers, &Format::ALL)
    }

    #[test]
    fn the_best_that_is_accepted_is_taken() {
        use Format::{Arrow, Csv, Json};
        assert_eq!(
            Format::accepted(&HeaderMap::new(), &Format::ALL),
            Some(Json)
        );
        for (accept, format) in [
            ("", Some(Json)),
            ("*/*", Some(Json)),
            ("text/csv", Some(Csv)),
            ("TEXT/CSV; charset=utf-8", Some(Csv)),
            ("text/*", Some(Csv)),
            ("application/*", Some(Json)),
            ("application/vnd.apache.arrow.stream", Some(Arrow)),
            ("application/json;q=0.5, text/csv;q=0.9", Some(Csv)),
            ("application/json;q=0, */*;q=0.1", Some(Csv)),
            ("text/html, */*;q=0.1", Some(Json)),
            ("text/html", None),
            ("application/json;q=0", None),
            ("nonsense", None),
        ] {
            assert_eq!(accepted(accept), format, "{accept:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(accept in "[ -~]{0,60}") {
            let _ = accepted(&accept);
        }
    }
}
