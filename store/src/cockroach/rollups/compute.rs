//! Some marked hours of one device, computed anew from their readings.

use futures_util::TryStreamExt as _;
use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row as _};

use super::super::super::rollups::part::{Hour, Key, Part, Parts};
use super::super::super::rollups::{Computed, HOUR};
use super::super::arguments::{Columns, Micros};
use super::super::ingest::sql_int;
use super::super::rows;
use super::{claim, first_kept, sql, time};

/// Marks of one transaction at most, and readings after which it takes no further one: a dense hour has a transaction of its
/// own, so that none runs into its time-out for what could be done in several.
const MARKS: i64 = 8;
const NUMBERS_MAX: u64 = 100_000;

/// A mark that was read.
#[derive(Debug)]
struct Mark {
    sensor: String,
    /// When its hour begins, in microseconds.
    hour: i64,
    marks: i64,
}

impl Mark {
    const fn end(&self) -> Micros {
        Micros(self.hour.saturating_add(HOUR))
    }
}

/// Rows of a table of rollups, each with its sensor.
type Rows<'m> = Vec<(&'m str, Key, Part, bool)>;

/// Computes some of a device's hours that nobody has marked for `rest` microseconds.
pub(super) async fn compute(
    connection: &mut PgConnection,
    device: &str,
    rest: i64,
) -> Result<Computed, sqlx::Error> {
    let Some((rolled_from, rolled_until)) = claim(connection, device).await? else {
        return Ok(Computed::default());
    };
    let select = sqlx::query(sql::MARKS).bind(device).bind(rest).bind(MARKS);
    let found = connection.fetch_all(select).await?;
    if found.is_empty() {
        return Ok(Computed::default());
    }
    let mut expired_before = None;
    let mut marks = Vec::with_capacity(found.len());
    for row in &found {
        marks.push(Mark {
            sensor: row.try_get(0)?,
            hour: time(row, 1)?.unwrap_or_default(),
            marks: rows::int(row, 2)?,
        });
        expired_before = time(row, 3)?;
    }
    // Hours that are not over are marked once they are, and of old ones no rollups are read.
    let from = first_kept(rolled_from, expired_before);
    let until = rolled_until.unwrap_or(i64::MIN);
    let is_rolled = |mark: &&Mark| (from..until).contains(&mark.hour);
    let rolled: Vec<&Mark> = marks.iter().filter(is_rolled).collect();
    let computed = numbers(connection, device, &rolled).await?;
    let (rolled, left) = rolled.split_at(computed.len());
    if !rolled.is_empty() {
        replace(connection, device, rolled, &computed).await?;
    }
    let first_left = left.first().copied();
    let is_done = |mark: &&Mark| first_left.is_none_or(|left| !std::ptr::eq(*mark, left));
    let done: Vec<&Mark> = marks.iter().take_while(is_done).collect();
    let unmark = Columns::default()
        .one(device)?
        .array(&done, |mark| mark.sensor.as_str())?
        .array(&done, |mark| Micros(mark.hour))?
        .array(&done, |mark| mark.marks)?;
    connection
        .execute(sqlx::query_with(sql::UNMARK, unmark.done()))
        .await?;
    Ok(Computed {
        hours: rolled.len() as u64,
        has_more: found.len() as i64 == MARKS || !left.is_empty(),
    })
}

/// Puts what the readings say in the place of what was computed before.
async fn replace(
    connection: &mut PgConnection,
    device: &str,
    marks: &[&Mark],
    computed: &[Hour],
) -> Result<(), sqlx::Error> {
    let drop_hours = Columns::default()
        .one(device)?
        .array(marks, |mark| mark.sensor.as_str())?
        .array(marks, |mark| Micros(mark.hour))?;
    connection
        .execute(sqlx::query_with(sql::DROP_HOURS, drop_hours.done()))
        .await?;
    let drop_minutes = Columns::default()
        .one(device)?
        .array(marks, |mark| mark.sensor.as_str())?
        .array(marks, |mark| Micros(mark.hour))?
        .array(marks, |mark| mark.end())?;
    connection
        .execute(sqlx::query_with(sql::DROP_MINUTES, drop_minutes.done()))
        .await?;
    let (mut hours, mut minutes): (Rows<'_>, Rows<'_>) = (Vec::new(), Vec::new());
    for (mark, hour) in marks.iter().zip(computed) {
        let has_minutes = !hour.minutes.is_empty();
        let row = |(key, part): &(Key, Part)| (mark.sensor.as_str(), *key, *part, has_minutes);
        hours.extend(hour.hours.iter().map(row));
        minutes.extend(hour.minutes.iter().map(row));
    }
    if !hours.is_empty() {
        let put = columns(device, &hours)?.array(&hours, |(.., has_minutes)| *has_minutes)?;
        connection
            .execute(sqlx::query_with(sql::PUT_HOURS, put.done()))
            .await?;
    }
    if !minutes.is_empty() {
        let put = columns(device, &minutes)?;
        connection
            .execute(sqlx::query_with(sql::PUT_MINUTES, put.done()))
            .await?;
    }
    Ok(())
}

/// The rollups of the first hours of some, as many as hold [`NUMBERS_MAX`] numbers, and one at least. They are read one first, and
/// then as many as would be enough if they held what it does.
async fn numbers(
    connection: &mut PgConnection,
    device: &str,
    marks: &[&Mark],
) -> Result<Vec<Hour>, sqlx::Error> {
    let mut hours = Vec::with_capacity(marks.len());
    let mut read = 0;
    while hours.len() < marks.len() && read < NUMBERS_MAX {
        let of_each = match hours.len() as u64 {
            0 => NUMBERS_MAX,
            done => read.div_ceil(done).max(1),
        };
        let wanted = ((NUMBERS_MAX - read) / of_each).max(1);
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let last = hours.len().saturating_add(wanted).min(marks.len());
        let (some, numbers) = numbers_of(connection, device, &marks[hours.len()..last]).await?;
        hours.extend(some);
        read += numbers;
    }
    Ok(hours)
}

/// The rollups of some hours, in their order, and how many numbers these hold.
async fn numbers_of(
    connection: &mut PgConnection,
    device: &str,
    marks: &[&Mark],
) -> Result<(Vec<Hour>, u64), sqlx::Error> {
    let places: Vec<i64> = (0..marks.len()).map(|at| sql_int(at as u64)).collect();
    let arguments = Columns::default()
        .one(device)?
        .array(marks, |mark| mark.sensor.as_str())?
        .array(marks, |mark| Micros(mark.hour))?
        .array(marks, |mark| mark.end())?
        .array(&places, |place| *place)?;
    let mut found = connection.fetch(sqlx::query_with(sql::NUMBERS, arguments.done()));
    let mut parts: Vec<Parts<Key>> = marks.iter().map(|_| Parts::default()).collect();
    let mut numbers = 0;
    while let Some(row) = found.try_next().await? {
        let place = usize::try_from(rows::number(&row, 0)?).unwrap_or(usize::MAX);
        let Micros(at) = row.try_get(1)?;
        if let Some(hour) = parts.get_mut(place) {
            hour.number(at, row.try_get(2)?, row.try_get(3)?);
        }
        numbers += 1;
    }
    Ok((parts.into_iter().map(Parts::hour).collect(), numbers))
}

/// The columns that hours and minutes share.
fn columns(device: &str, rows: &Rows<'_>) -> Result<Columns, sqlx::Error> {
    Columns::default()
        .one(device)?
        .array(rows, |(sensor, ..)| *sensor)?
        .array(rows, |(_, (at, _), ..)| Micros(*at))?
        .array(rows, |(_, (_, quality), ..)| *quality)?
        .array(rows, |(.., part, _)| sql_int(part.sums.count))?
        .array(rows, |(.., part, _)| part.low)?
        .array(rows, |(.., part, _)| part.high)?
        .array(rows, |(.., part, _)| part.sums.small)?
        .array(rows, |(.., part, _)| part.sums.big)?
        .array(rows, |(.., part, _)| Micros(part.first.0))?
        .array(rows, |(.., part, _)| part.first.1)?
        .array(rows, |(.., part, _)| Micros(part.last.0))?
        .array(rows, |(.., part, _)| part.last.1)
}
