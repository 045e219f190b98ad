//! What an exporter answers → series, line by line. Pure; borrows from the body, and so is bounded by it.
//!
//! ```text
//! # TYPE http_requests_total counter
//! http_requests_total{method="post",code="200"} 1027 1395066363000
//! {"with.dots",method="post"} 3                       (names in quotes, as Prometheus 3 writes them)
//! # EOF                                               (OpenMetrics only)
//! ```
//!
//! Text format 0.0.4 and OpenMetrics 1.0 in one parser. They differ in times (milliseconds, seconds), in the names of
//! counters, in exemplars, and in that OpenMetrics says where it ends. A line that is neither is passed over and
//! reported with what is wrong with it.

use std::borrow::Cow;
use std::collections::HashMap;

/// Longest line, in bytes.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// Most labels of one series.
pub const LABELS_MAX: usize = 64;

/// How the body is written, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`, and whatever says nothing else.
    Text,
    /// `application/openmetrics-text`.
    OpenMetrics,
}

/// What a series is, and so what may be made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A value as it is: of a gauge, a state, or of unknown type.
    Value,
    /// It only grows, until its process begins anew: a counter, or sum and count of a histogram or summary.
    Counter,
    /// One bucket of a histogram.
    Bucket,
    /// One quantile of a summary.
    Quantile,
    /// Always 1: its labels are the message.
    Info,
    /// When a counter began.
    Created,
}

/// One line that is a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Series<'a> {
    /// The name of the metric.
    pub name: Cow<'a, str>,
    /// Its labels, as they are written.
    pub labels: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// Its value; NaN where it has none at present, which is also how staleness is written.
    pub value: f64,
    /// The exporter's time, microseconds since the Unix epoch.
    pub at_micros: Option<i64>,
    /// What it is.
    pub role: Role,
}

/// Why a line is no series.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Over the limit.
    #[error("line is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// Not UTF-8.
    #[error("line is not UTF-8")]
    NotUtf8,
    /// It does not begin as a metric does.
    #[error("no metric's name at its beginning")]
    Name,
    /// Its braces are not as they should be.
    #[error("labels: {0}")]
    Labels(&'static str),
    /// Over the limit.
    #[error("more than {LABELS_MAX} labels")]
    TooManyLabels,
    /// No number where the value should be.
    #[error("value is no number")]
    Value,
    /// No number where the time should be, or too large a one.
    #[error("time is no number, or out of range")]
    Time,
    /// More than a line has.
    #[error("something stands behind value and time")]
    Rest,
}

/// The type of a family, as `# TYPE` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Counter,
    Gauge,
    Histogram,
    GaugeHistogram,
    Summary,
    StateSet,
    Info,
    Unknown,
}

/// Reads a body. Calls `found` for each series, and `bad` with number and error of each line that is none.
/// Returns whether `# EOF` ended it.
pub fn read<'a>(
    body: &'a [u8],
    format: Format,
    mut found: impl FnMut(Series<'a>),
    mut bad: impl FnMut(usize, LineError),
) -> bool {
    let mut families = HashMap::new();
    for (line, number) in body.split(|byte| *byte == b'\n').zip(1..) {
        match read_line(line, format, &mut families) {
            Ok(Line::Series(series)) => found(series),
            Ok(Line::End) => return true,
            Ok(Line::Nothing) => {}
            Err(error) => bad(number, error),
        }
    }
    false
}

enum Line<'a> {
    Series(Series<'a>),
    End,
    Nothing,
}

fn read_line<'a>(
    line: &'a [u8],
    format: Format,
    families: &mut HashMap<Cow<'a, str>, Family>,
) -> Result<Line<'a>, LineError> {
    if line.len() > LINE_BYTES_MAX {
        return Err(LineError::TooLong);
    }
    let line = std::str::from_utf8(line).map_err(|_| LineError::NotUtf8)?;
    let line = line.trim_matches(is_blank);
    if line.is_empty() {
        return Ok(Line::Nothing);
    }
    if let Some(comment) = line.strip_prefix('#') {
        if format == Format::OpenMetrics && comment.trim_matches(is_blank) == "EOF" {
            return Ok(Line::End);
        }
        if let Some((name, family)) = family(comment) {
            families.insert(name, family);
        }
        return Ok(Line::Nothing);
    }
    series(line, format, families).map(Line::Series)
}

const fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r')
}

/// The family that a `TYPE` declares.
fn family(comment: &str) -> Option<(Cow<'_, str>, Family)> {
    let mut rest = comment.trim_start_matches(is_blank).strip_prefix("TYPE")?;
    rest = rest.strip_prefix(is_blank)?.trim_start_matches(is_blank);
    let name = match rest.strip_prefix('"') {
        Some(quoted) => {
            let (name, behind) = unquote(quoted)?;
            rest = behind;
            name
        }
        None => {
            let (name, behind) = rest.split_once(is_blank)?;
            rest = behind;
            Cow::Borrowed(name)
        }
    };
    let family = match rest.trim_matches(is_blank) {
        "counter" => Family::Counter,
        "gauge" => Family::Gauge,
        "histogram" => Family::Histogram,
        "gaugehistogram" => Family::GaugeHistogram,
        "summary" => Family::Summary,
        "stateset" => Family::StateSet,
        "info" => Family::Info,
        _ => Family::Unknown,
    };
    Some((name, family))
}

fn series<'a>(
    line: &'a str,
    format: Format,
    families: &HashMap<Cow<'a, str>, Family>,
) -> Result<Series<'a>, LineError> {
    let end = line.find(|c| !is_name_char(c)).ok_or(LineError::Value)?;
    let (plain, rest) = line.split_at(end);
    let mut name = (!plain.is_empty()).then_some(Cow::Borrowed(plain));
    if plain.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(LineError::Name);
    }
    let rest = rest.trim_start_matches(is_blank);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => labels(inside, &mut name)?,
        None => (Vec::new(), rest),
    };
    let name = name.ok_or(LineError::Name)?;
    // What an exemplar says is of no use here.
    let rest = match (format, rest.split_once('#')) {
        (Format::OpenMetrics, Some((before, _))) => before,
        _ => rest,
    };
    let mut words = rest.split(is_blank).filter(|word| !word.is_empty());
    let value = number(words.next().ok_or(LineError::Value)?).ok_or(LineError::Value)?;
    let at_micros = words.next().map(|word| time(word, format)).transpose()?;
    if words.next().is_some() {
        return Err(LineError::Rest);
    }
    let role = role(&name, &labels, families);
    Ok(Series {
        name,
        labels,
        value,
        at_micros,
        role,
    })
}

const fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':')
}

type Labels<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

/// The labels up to the closing brace, and what stands behind it. A text in quotes without a value is the name.
fn labels<'a>(
    mut rest: &'a str,
    name: &mut Option<Cow<'a, str>>,
) -> Result<(Labels<'a>, &'a str), LineError> {
    let mut labels = Labels::new();
    loop {
        rest = rest.trim_start_matches(is_blank);
        if let Some(behind) = rest.strip_prefix('}') {
            return Ok((labels, behind));
        }
        let label = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (text, behind) =
                    unquote(quoted).ok_or(LineError::Labels("a quote is not closed"))?;
                rest = behind.trim_start_matches(is_blank);
                if !rest.starts_with('=') {
                    if name.is_some() || !labels.is_empty() {
                        return Err(LineError::Labels("a name in quotes stands first, alone"));
                    }
                    *name = Some(text);
                    rest = end_of_label(rest)?;
                    continue;
                }
                text
            }
            None => {
                let end = rest.find(|c| !is_name_char(c)).unwrap_or(rest.len());
                let (label, behind) = rest.split_at(end);
                if label.is_empty() || label.starts_with(|c: char| c.is_ascii_digit()) {
                    return Err(LineError::Labels("a label has no name"));
                }
                rest = behind.trim_start_matches(is_blank);
                Cow::Borrowed(label)
            }
        };
        let quoted = rest
            .strip_prefix('=')
            .map(|behind| behind.trim_start_matches(is_blank))
            .and_then(|behind| behind.strip_prefix('"'))
            .ok_or(LineError::Labels("a label has no value in quotes"))?;
        let (value, behind) = unquote(quoted).ok_or(LineError::Labels("a quote is not closed"))?;
        if labels.len() == LABELS_MAX {
            return Err(LineError::TooManyLabels);
        }
        labels.push((label, value));
        rest = end_of_label(behind)?;
    }
}

/// Behind the comma, or before the closing brace.
fn end_of_label(rest: &str) -> Result<&str, LineError> {
    let rest = rest.trim_start_matches(is_blank);
    match rest.strip_prefix(',') {
        Some(behind) => Ok(behind),
        None if rest.starts_with('}') => Ok(rest),
        None => Err(LineError::Labels(
            "neither a comma nor the closing brace follows",
        )),
    }
}

/// A text up to its closing quote, and what stands behind that.
fn unquote(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let end = text.find(['"', '\\'])?;
    if text.as_bytes()[end] == b'"' {
        return Some((Cow::Borrowed(&text[..end]), &text[end + 1..]));
    }
    let mut plain = String::from(&text[..end]);
    let mut chars = text[end..].char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((Cow::Owned(plain), &text[end + at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => plain.push('\n'),
                c @ ('"' | '\\') => plain.push(c),
                // As Prometheus reads it.
                other => plain.extend(['\\', other]),
            },
            c => plain.push(c),
        }
    }
    None
}

fn number(word: &str) -> Option<f64> {
    // Rust's words for infinity and NaN are those of the format, in any case.
    word.parse().ok()
}

fn time(word: &str, format: Format) -> Result<i64, LineError> {
    match format {
        Format::Text => word
            .parse::<i64>()
            .ok()
            .and_then(|millis| millis.checked_mul(1000)),
        Format::OpenMetrics => number(word)
            .map(|seconds| (seconds * 1e6).round())
            .filter(|micros| micros.abs() < 9e18)
            .map(|micros| micros as i64),
    }
    .ok_or(LineError::Time)
}

/// What the series is, by the family that it belongs to.
fn role(name: &str, labels: &Labels<'_>, families: &HashMap<Cow<'_, str>, Family>) -> Role {
    let has = |wanted: &str| labels.iter().any(|(label, _)| label == wanted);
    if let Some(family) = families.get(name) {
        match family {
            Family::Counter => return Role::Counter,
            Family::Summary if has("quantile") => return Role::Quantile,
            Family::Info => return Role::Info,
            _ => return Role::Value,
        }
    }
    let of = |suffix: &str| families.get(name.strip_suffix(suffix)?).copied();
    let counts = |family| matches!(family, Family::Histogram | Family::Summary);
    if of("_total") == Some(Family::Counter) {
        return Role::Counter;
    }
    if of("_sum").or(of("_count")).is_some_and(counts) {
        return Role::Counter;
    }
    if matches!(
        of("_bucket"),
        Some(Family::Histogram | Family::GaugeHistogram)
    ) {
        return Role::Bucket;
    }
    if of("_created").is_some_and(|family| counts(family) || family == Family::Counter) {
        return Role::Created;
    }
    match of("_info") {
        Some(Family::Info) => Role::Info,
        _ => Role::Value,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Name with labels, value, time and role of each series; then the lines that are bad.
    fn told(body: &str, format: Format) -> Vec<String> {
        let (mut told, mut wrong) = (Vec::new(), Vec::new());
        let ended = read(
            body.as_bytes(),
            format,
            |one| {
                let labels: Vec<String> = one
                    .labels
                    .iter()
                    .map(|(label, value)| format!("{label}={value}"))
                    .collect();
                let labels = labels.join(";");
                let at = one.at_micros.map_or(String::new(), |at| format!(" @{at}"));
                told.push(format!(
                    "{} {labels} {}{at} {:?}",
                    one.name, one.value, one.role
                ));
            },
            |line, error| wrong.push(format!("{line}: {error}")),
        );
        told.extend(wrong);
        told.extend(ended.then(|| "end".to_owned()));
        told
    }

    fn check(body: &str, format: Format, expected: &[&str]) {
        assert_eq!(told(body, format), expected, "{body}");
    }

    /// The example of the format's own description.
    #[test]
    fn the_text_format_is_read() {
        let body = r#"# HELP http_requests_total The total number of HTTP requests.
# TYPE http_requests_total counter
http_requests_total{method="post",code="200"} 1027 1395066363000
http_requests_total{method="post",code="400"}    3 1395066363000

# Escaping in label values:
msdos_file_access_time_seconds{path="C:\\DIR\\FILE.TXT",error="Cannot find file:\n\"FILE.TXT\""} 1.458255915e9

# Minimalistic line:
metric_without_timestamp_and_labels 12.47

# A weird metric from before the epoch:
something_weird{problem="division by zero"} +Inf -3982045

# A histogram, which has a pretty complex representation in the text format:
# HELP http_request_duration_seconds A histogram of the request duration.
# TYPE http_request_duration_seconds histogram
http_request_duration_seconds_bucket{le="0.05"} 24054
http_request_duration_seconds_bucket{le="+Inf"} 144320
http_request_duration_seconds_sum 53423
http_request_duration_seconds_count 144320

# TYPE rpc_duration_seconds summary
rpc_duration_seconds{quantile="0.01"} 3102
rpc_duration_seconds_sum 1.7560473e+07
rpc_duration_seconds_count 2693
"#;
        check(
            body,
            Format::Text,
            &[
                "http_requests_total method=post;code=200 1027 @1395066363000000 Counter",
                "http_requests_total method=post;code=400 3 @1395066363000000 Counter",
                "msdos_file_access_time_seconds path=C:\\DIR\\FILE.TXT;error=Cannot find file:\n\"FILE.TXT\" 1458255915 Value",
                "metric_without_timestamp_and_labels  12.47 Value",
                "something_weird problem=division by zero inf @-3982045000 Value",
                "http_request_duration_seconds_bucket le=0.05 24054 Bucket",
                "http_request_duration_seconds_bucket le=+Inf 144320 Bucket",
                "http_request_duration_seconds_sum  53423 Counter",
                "http_request_duration_seconds_count  144320 Counter",
                "rpc_duration_seconds quantile=0.01 3102 Quantile",
                "rpc_duration_seconds_sum  17560473 Counter",
                "rpc_duration_seconds_count  2693 Counter",
            ],
        );
    }

    #[test]
    fn open_metrics_is_read_up_to_its_end() {
        let body = r##"# TYPE acme_http_router_request_seconds summary
# UNIT acme_http_router_request_seconds seconds
acme_http_router_request_seconds_sum{path="/api/v1"} 9036.32 1520879607.789
acme_http_router_request_seconds_created{path="/api/v1"} 1605281325.0
# TYPE go_goroutines gauge
go_goroutines 69
# TYPE foo counter
foo_total{a="#"} 17.0 1520879607.5 # {trace_id="KOO5S4vxi0o"} 0.67
foo_created 1605281325.0
# TYPE build info
build_info{version="1"} 1
# TYPE queue gaugehistogram
queue_bucket{le="1"} 1
queue_gsum 3
# TYPE door stateset
door{door="open"} 1
# EOF
ignored 1
"##;
        check(
            body,
            Format::OpenMetrics,
            &[
                "acme_http_router_request_seconds_sum path=/api/v1 9036.32 @1520879607789000 Counter",
                "acme_http_router_request_seconds_created path=/api/v1 1605281325 Created",
                "go_goroutines  69 Value",
                "foo_total a=# 17 @1520879607500000 Counter",
                "foo_created  1605281325 Created",
                "build_info version=1 1 Info",
                "queue_bucket le=1 1 Bucket",
                "queue_gsum  3 Value",
                "door door=open 1 Value",
                "end",
            ],
        );
    }

    #[test]
    fn names_in_quotes_are_read() {
        let body = "# TYPE \"with.dots\" counter\n{\"with.dots\",\"a.b\"=\"c\",d=\"e\"} 3\n{\"alone\"} NaN\n";
        check(
            body,
            Format::Text,
            &["with.dots a.b=c;d=e 3 Counter", "alone  NaN Value"],
        );
    }

    #[test]
    fn each_bad_line_is_named_and_hides_no_other() {
        let long = "x".repeat(LINE_BYTES_MAX - 1);
        let labels = |count: usize| {
            let labels: Vec<String> = (0..count).map(|n| format!("l{n}=\"\"")).collect();
            format!("m{{{}}} 1", labels.join(","))
        };
        for (line, expected) in [
            ("1up 1", "no metric's name at its beginning"),
            ("{} 1", "no metric's name at its beginning"),
            ("-", "no metric's name at its beginning"),
            ("up", "value is no number"),
            ("up ", "value is no number"),
            ("up one", "value is no number"),
            ("up{} ", "value is no number"),
            ("up 1 now", "time is no number, or out of range"),
            (
                "up 1 9223372036854775807",
                "time is no number, or out of range",
            ),
            ("up 1 2 3", "something stands behind value and time"),
            ("up{a=\"b} 1", "labels: a quote is not closed"),
            ("up{a=\"b\\", "labels: a quote is not closed"),
            ("up{a} 1", "labels: a label has no value in quotes"),
            ("up{=\"b\"} 1", "labels: a label has no name"),
            ("up{", "labels: a label has no name"),
            ("up{1a=\"b\"} 1", "labels: a label has no name"),
            (
                "up{a=\"b\"c=\"d\"} 1",
                "labels: neither a comma nor the closing brace follows",
            ),
            (
                "up{\"b\"} 1",
                "labels: a name in quotes stands first, alone",
            ),
            (&labels(LABELS_MAX + 1), "more than 64 labels"),
            (&format!("{long} 1"), "line is longer than 16384 bytes"),
        ] {
            let body = format!("before 1\n{line}\nbehind 2\n");
            let expected = format!("2: {expected}");
            let expected = ["before  1 Value", "behind  2 Value", &expected];
            check(&body, Format::Text, &expected);
        }
        assert_eq!(told(&labels(LABELS_MAX), Format::Text).len(), 1);
        let fits = format!("{} 1", &long[2..]);
        assert_eq!(fits.len(), LINE_BYTES_MAX - 1);
        assert!(told(&fits, Format::Text)[0].ends_with("1 Value"));
        let mut errors = Vec::new();
        read(
            b"\xff 1\nup 1",
            Format::Text,
            |_| {},
            |line, error| errors.push((line, error)),
        );
        assert_eq!(errors, [(1, LineError::NotUtf8)]);
    }

    proptest! {
        #[test]
        fn nothing_panics(body in prop::collection::vec(any::<u8>(), 0..300), is_open in any::<bool>()) {
            let format = if is_open { Format::OpenMetrics } else { Format::Text };
            read(&body, format, |_| {}, |_, _| {});
        }

        #[test]
        fn what_looks_like_series_does_not_panic(body in r#"([a-z_]{1,3}(\{([a-z]="[a-z\\"]{0,3}",?){0,2}\}?)? [0-9.eE+-]{0,5}( [0-9]{0,20})?\n|# (TYPE|EOF) [a-z ]*\n){0,8}"#) {
            read(body.as_bytes(), Format::OpenMetrics, |_| {}, |_, _| {});
        }

        /// Whatever a label holds, it comes back.
        #[test]
        fn labels_come_back(value in any::<String>(), label in "[a-z_][a-z0-9_]{0,5}") {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let body = format!("m{{{label}=\"{escaped}\"}} 1");
            let mut found = Vec::new();
            read(body.as_bytes(), Format::Text, |one| found.push(one.labels.clone()), |_, _| {});
            prop_assert_eq!(found, vec![vec![(Cow::from(label.as_str()), Cow::from(value.as_str()))]]);
        }
    }
}
