//! Records of a CSV file → readings. Pure; a fuzz target drives it with whatever a file may hold.
//!
//! The header says which of three forms the file has:
//!
//! ```text
//! time,press/temperature:f,press/on     wide: a sensor in each column; a type may stand behind its name
//! 60,room/temperature:f,room/co2:i      the same without times: a row each 60 s
//! sensor,time,value,quality             long: a reading in each row; quality may be missing
//! ```

use std::time::Duration;

use schema::{ObservedAt, Quality, SensorName, TimestampUnit, Value, WrittenTime};

/// What the time's column may be called, whatever the case of its letters.
const TIME_NAMES: [&str; 5] = ["time", "timestamp", "observed_at", "date", "datetime"];

/// The longest time between the rows of a file without times.
const EVERY_MAX: f64 = 366.0 * 86_400.0;

/// The form of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    time: Time,
    form: Form,
    unit: TimestampUnit,
    fields: usize,
}

#[derive(Debug, Clone, PartialEq)]
enum Time {
    /// In this field.
    Field(usize),
    /// A row follows the one before it after so long.
    Every(Duration),
}

#[derive(Debug, Clone, PartialEq)]
enum Form {
    /// By field; none for the time's.
    Wide(Vec<Option<Column>>),
    Long {
        sensor: usize,
        value: usize,
        quality: Option<usize>,
    },
}

#[derive(Debug, Clone, PartialEq)]
struct Column {
    sensor: SensorName,
    kind: Kind,
}

/// What the cells of a column are read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A fraction if it is a number, else `true`, `false` or a text. A column whose numbers are whole now and then is
    /// one series.
    Any,
    Float,
    Integer,
    Bool,
    Text,
}

/// What the settings say of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// The name of the column of times, where it is none of the usual ones.
    pub time_column: Option<String>,
    /// What numbers in it count.
    pub timestamp_unit: Option<TimestampUnit>,
    /// The time between two rows, where there are no times.
    pub every: Option<Duration>,
}

/// Why a header cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Bytes that are no text.
    #[error("the header is not UTF-8")]
    NotUtf8,
    /// No column of times.
    #[error(
        "the header has no column of times: name one `time`, say which it is with time_column, or how far rows \
         are apart with every"
    )]
    NoTime,
    /// The column that the settings name is missing.
    #[error("the header has no column {0:?}, which time_column names")]
    NoSuchColumn(String),
    /// No sensor at all.
    #[error("the header has no column of a sensor")]
    NoSensor,
    /// A name that no sensor has.
    #[error("column {column}: {reason}")]
    Name {
        /// Its number, from 1.
        column: usize,
        /// What is wrong.
        reason: String,
    },
    /// Two columns of one sensor.
    #[error("columns {first} and {second} are of the same sensor")]
    Twice {
        /// The number of one, from 1.
        first: usize,
        /// The number of the other.
        second: usize,
    },
}

/// A reading whose time is that of its row.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Of which sensor.
    pub sensor: SensorName,
    /// What it said.
    pub value: Value,
    /// How far it is to be trusted.
    pub quality: Quality,
}

/// What is wrong with a row or with one of its cells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// As metrics name it.
    pub label: &'static str,
    /// For people.
    pub reason: String,
}

/// When the readings of a row were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Then.
    At(ObservedAt),
    /// So long after those of the row before.
    After(Duration),
}

/// A row.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// When.
    pub when: When,
    /// Its readings; empty cells are none.
    pub cells: Vec<Cell>,
    /// What could not be read of it.
    pub flaws: Vec<Flaw>,
}

impl Flaw {
    fn new(label: &'static str, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { label, reason }
    }
}

impl Layout {
    /// Understands a header.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn of<'a>(
        header: impl Iterator<Item = &'a [u8]>,
        hints: &Hints,
    ) -> Result<Self, HeaderError> {
        let names: Vec<&str> = header
            .map(|name| std::str::from_utf8(name).map(str::trim))
            .collect::<Result<_, _>>()
            .map_err(|_| HeaderError::NotUtf8)?;
        let place = |wanted: &str| {
            let is_it = |name: &&str| name.eq_ignore_ascii_case(wanted);
            names.iter().position(is_it)
        };
        let by_name = match &hints.time_column {
            Some(name) => {
                let found = names.iter().position(|one| one == name);
                Some(found.ok_or_else(|| HeaderError::NoSuchColumn(name.clone()))?)
            }
            None if hints.every.is_some() => None,
            None => TIME_NAMES.into_iter().find_map(place),
        };
        let unit = hints.timestamp_unit.unwrap_or(TimestampUnit::Millis);
        let fields = names.len();
        if let (Some(sensor), Some(value), Some(time)) = (place("sensor"), place("value"), by_name)
        {
            let quality = place("quality");
            return Ok(Self {
                time: Time::Field(time),
                form: Form::Long {
                    sensor,
                    value,
                    quality,
                },
                unit,
                fields,
            });
        }
        // In files without times the first cell of the header alone says how far rows are apart.
        let written = names.first().and_then(|first| seconds(first));
        let (time, names) = match (by_name, hints.every, written) {
            (Some(field), _, _) => (Time::Field(field), &names[..]),
            (None, Some(every), Some(_)) => (Time::Every(every), &names[1..]),
            (None, Some(every), None) => (Time::Every(every), &names[..]),
            (None, None, Some(every)) => (Time::Every(every), &names[1..]),
            (None, None, None) => return Err(HeaderError::NoTime),
        };
        Ok(Self {
            form: Form::Wide(columns(names, &time)?),
            fields: names.len(),
            time,
            unit,
        })
    }

    /// Whether rows say when they were.
    #[must_use]
    pub const fn has_times(&self) -> bool {
        matches!(self.time, Time::Field(_))
    }

    /// Its form in words, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.form {
            Form::Wide(columns) => format!("{} sensors", columns.iter().flatten().count()),
            Form::Long { .. } => "a reading in each row".to_owned(),
        }
    }

    /// Reads a row, whose fields are as many as those of the header.
    ///
    /// # Errors
    /// A [`Flaw`] that leaves nothing of it: its time, or the number of its fields.
    pub fn row<'a>(&self, fields: impl Iterator<Item = &'a [u8]>) -> Result<Row, Flaw> {
        let fields: Vec<&str> = fields
            .map(|field| std::str::from_utf8(field).map(str::trim))
            .collect::<Result<_, _>>()
            .map_err(|_| Flaw::new("malformed", "it is not UTF-8"))?;
        if fields.len() != self.fields {
            let (found, wanted) = (fields.len(), self.fields);
            let reason = format!("it has {found} fields, and the header {wanted}");
            return Err(Flaw::new("malformed", reason));
        }
        let when = match self.time {
            Time::Every(every) => When::After(every),
            Time::Field(field) => When::At(time(fields[field], self.unit)?),
        };
        let mut row = Row {
            when,
            cells: Vec::new(),
            flaws: Vec::new(),
        };
        match &self.form {
            Form::Wide(columns) => {
                for (column, text) in columns.iter().zip(&fields) {
                    let (Some(column), false) = (column, text.is_empty()) else {
                        continue;
                    };
                    match column.kind.value(text) {
                        Ok(value) => row.cells.push(Cell {
                            sensor: column.sensor.clone(),
                            value,
                            quality: Quality::Good,
                        }),
                        Err(Flaw { label, reason }) => {
                            let reason = format!("{}: {reason}", column.sensor);
                            row.flaws.push(Flaw { label, reason });
                        }
                    }
                }
            }
            Form::Long {
                sensor,
                value,
                quality,
            } => {
                if !fields[*value].is_empty() {
                    let quality = quality.map(|field| fields[field]);
                    match long(fields[*sensor], fields[*value], quality) {
                        Ok(cell) => row.cells.push(cell),
                        Err(flaw) => row.flaws.push(flaw),
                    }
                }
            }
        }
        Ok(row)
    }
}

fn columns(names: &[&str], time: &Time) -> Result<Vec<Option<Column>>, HeaderError> {
    let mut columns: Vec<Option<Column>> = Vec::with_capacity(names.len());
    let mut places = std::collections::BTreeMap::new();
    for (place, name) in names.iter().enumerate() {
        if *time == Time::Field(place) {
            columns.push(None);
            continue;
        }
        let (sensor, kind) = typed(name);
        let column = place + 1;
        let sensor: SensorName = sensor.parse().map_err(|error: schema::id::IdError| {
            let reason = error.to_string();
            HeaderError::Name { column, reason }
        })?;
        if let Some(first) = places.insert(sensor.clone(), column) {
            let second = column;
            return Err(HeaderError::Twice { first, second });
        }
        columns.push(Some(Column { sensor, kind }));
    }
    if places.is_empty() {
        return Err(HeaderError::NoSensor);
    }
    Ok(columns)
}

/// A name, and the type that may stand behind it.
fn typed(name: &str) -> (&str, Kind) {
    let kinds = [
        (":f", Kind::Float),
        (":i", Kind::Integer),
        (":b", Kind::Bool),
        (":t", Kind::Text),
    ];
    let found = kinds
        .into_iter()
        .find_map(|(end, kind)| Some((name.strip_suffix(end)?, kind)));
    found.unwrap_or((name, Kind::Any))
}

fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    (seconds > 0.0 && seconds <= EVERY_MAX).then(|| Duration::from_secs_f64(seconds))
}

fn long(sensor: &str, value: &str, quality: Option<&str>) -> Result<Cell, Flaw> {
    let (sensor, kind) = typed(sensor);
    let sensor = sensor
        .parse()
        .map_err(|error: schema::id::IdError| Flaw::new("bad_sensor_name", error.to_string()))?;
    let quality = match quality {
        None | Some("" | "good") => Quality::Good,
        Some("uncertain") => Quality::Uncertain,
        Some("bad") => Quality::Bad,
        Some(other) => {
            let reason = format!("quality {other:?} is none: good, uncertain or bad");
            return Err(Flaw::new("malformed", reason));
        }
    };
    Ok(Cell {
        sensor,
        value: kind.value(value)?,
        quality,
    })
}

impl Kind {
    fn value(self, text: &str) -> Result<Value, Flaw> {
        let none = |what: &str| Flaw::new("malformed", format!("{text:?} is not {what}"));
        let value = match self {
            Self::Any => match text.parse::<f64>() {
                Ok(number) => Value::F64(number),
                Err(_) => match truth(text) {
                    Some(truth) if text.len() > 1 => Value::Bool(truth),
                    _ => Value::Text(text.into()),
                },
            },
            Self::Float => Value::F64(text.parse().map_err(|_| none("a number"))?),
            Self::Integer => Value::I64(text.parse().map_err(|_| none("a whole number"))?),
            Self::Bool => Value::Bool(truth(text).ok_or_else(|| none("true, false, 1 or 0"))?),
            Self::Text => Value::Text(text.into()),
        };
        value.validate().map_err(|error| {
            let label = match value {
                Value::F64(_) => "not_finite",
                _ => "bad_text",
            };
            Flaw::new(label, error.to_string())
        })?;
        Ok(value)
    }
}

fn truth(text: &str) -> Option<bool> {
    match text {
        "1" => Some(true),
        "0" => Some(false),
        _ if text.eq_ignore_ascii_case("true") => Some(true),
        _ if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// RFC 3339, or a number in the unit; a day and an hour without a zone are UTC's.
fn time(text: &str, unit: TimestampUnit) -> Result<ObservedAt, Flaw> {
    let read = |text: &str| WrittenTime::Text(text.into()).read(unit, None);
    let bytes = text.as_bytes();
    let is_day_and_hour = bytes.len() >= 19
        && bytes[4] == b'-'
        && matches!(bytes[10], b' ' | b'T')
        && bytes[13] == b':';
    let outcome = if is_day_and_hour && text.is_ascii() {
        let (day, hour) = (&text[..10], &text[11..]);
        let has_zone = hour.contains(['Z', 'z', '+', '-']);
        let zone = if has_zone { "" } else { "Z" };
        read(&format!("{day}T{hour}{zone}"))
    } else {
        read(text)
    };
    outcome.map_err(|error| Flaw::new("bad_time", error.to_string()))
}

#[cfg(test)]
mod tests;
