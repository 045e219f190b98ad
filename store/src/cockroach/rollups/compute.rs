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

/// Marks of one transaction: at a reading a second some 100,000 readings.
const MARKS: i64 = 32;

/// Hours that are read at once: of those that hold more, what was read of all but one is read again in another turn.
const HOURS: usize = 8;

/// Numbers of an hour that are read at once: all of an hour with a reading a second.
const NUMBERS: i64 = 4_000;

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
    let mut done: Vec<&Mark> = marks.iter().filter(|mark| !is_rolled(mark)).collect();
    let hours = match rolled.is_empty() {
        true => 0,
        false => {
            let computed = numbers(connection, device, &rolled).await?;
            replace(connection, device, &computed).await?;
            done.extend(computed.iter().map(|(mark, _)| *mark));
            computed.len()
        }
    };
    // In the order of their keys, in which whoever writes marks locks them.
    done.sort_unstable_by(|one, other| (&one.sensor, one.hour).cmp(&(&other.sensor, other.hour)));
    let unmark = Columns::default()
        .one(device)?
        .array(&done, |mark| mark.sensor.as_str())?
        .array(&done, |mark| Micros(mark.hour))?
        .array(&done, |mark| mark.marks)?;
    connection
        .execute(sqlx::query_with(sql::UNMARK, unmark.done()))
        .await?;
    Ok(Computed {
        hours: hours as u64,
        // Of long hours one is computed at a time; where all marks were of no use there may be others.
        has_more: hours > 0 || found.len() as i64 == MARKS,
    })
}

/// Puts what the readings say in the place of what was computed before.
async fn replace(
    connection: &mut PgConnection,
    device: &str,
    computed: &[(&Mark, Hour)],
) -> Result<(), sqlx::Error> {
    let drop_hours = Columns::default()
        .one(device)?
        .array(computed, |(mark, _)| mark.sensor.as_str())?
        .array(computed, |(mark, _)| Micros(mark.hour))?;
    connection
        .execute(sqlx::query_with(sql::DROP_HOURS, drop_hours.done()))
        .await?;
    let drop_minutes = Columns::default()
        .one(device)?
        .array(computed, |(mark, _)| mark.sensor.as_str())?
        .array(computed, |(mark, _)| Micros(mark.hour))?
        .array(computed, |(mark, _)| mark.end())?;
    connection
        .execute(sqlx::query_with(sql::DROP_MINUTES, drop_minutes.done()))
        .await?;
    let (mut hours, mut minutes): (Rows<'_>, Rows<'_>) = (Vec::new(), Vec::new());
    for (mark, hour) in computed {
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

/// The rollups of marked hours: of all that are read at once, and of the first that is not. The others wait for another turn, so
/// that one busy device holds up the rest for one long hour at most.
async fn numbers<'m>(
    connection: &mut PgConnection,
    device: &str,
    marks: &[&'m Mark],
) -> Result<Vec<(&'m Mark, Hour)>, sqlx::Error> {
    let mut computed = Vec::with_capacity(marks.len());
    for some in marks.chunks(HOURS) {
        let from: Vec<i64> = some.iter().map(|mark| mark.hour).collect();
        let read = some_numbers(connection, device, some, &from).await?;
        let mut long = None;
        for (mark, (parts, next)) in some.iter().zip(read) {
            match next {
                None => computed.push((*mark, parts.hour())),
                Some(_) => long = long.or(Some((*mark, parts, next))),
            }
        }
        let Some((mark, mut parts, mut next)) = long else {
            continue;
        };
        while let Some(from) = next {
            let read = some_numbers(connection, device, &[mark], &[from]).await?;
            next = None;
            for (more, behind) in read {
                more.0.iter().for_each(|(key, part)| parts.add(*key, part));
                next = behind;
            }
        }
        computed.push((mark, parts.hour()));
        break;
    }
    Ok(computed)
}

/// The first [`NUMBERS`] of each hour from a time on, and from where more follow.
async fn some_numbers(
    connection: &mut PgConnection,
    device: &str,
    marks: &[&Mark],
    from: &[i64],
) -> Result<Vec<(Parts<Key>, Option<i64>)>, sqlx::Error> {
    let places: Vec<i64> = (0..marks.len()).map(|at| sql_int(at as u64)).collect();
    let arguments = Columns::default()
        .one(device)?
        .array(marks, |mark| mark.sensor.as_str())?
        .array(from, |from| Micros(*from))?
        .array(marks, |mark| mark.end())?
        .array(&places, |place| *place)?
        .one(NUMBERS)?;
    let mut read: Vec<(Parts<Key>, Option<i64>)> = Vec::new();
    read.resize_with(marks.len(), Default::default);
    let mut found = connection.fetch(sqlx::query_with(sql::NUMBERS, arguments.done()));
    while let Some(row) = found.try_next().await? {
        // Of an hour without numbers there are no arrays.
        let times: Option<Vec<Micros>> = row.try_get(1)?;
        let qualities: Option<Vec<i64>> = row.try_get(2)?;
        let numbers: Option<Vec<f64>> = row.try_get(3)?;
        let (Some(times), Some(qualities), Some(numbers)) = (times, qualities, numbers) else {
            continue;
        };
        let place = usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or(usize::MAX);
        let Some((parts, next)) = read.get_mut(place) else {
            continue;
        };
        for ((Micros(at), quality), number) in times.iter().zip(&qualities).zip(&numbers) {
            parts.number(*at, i16::try_from(*quality).unwrap_or(i16::MAX), *number);
        }
        if sql_int(times.len() as u64) == NUMBERS {
            *next = times.iter().map(|time| time.0.saturating_add(1)).max();
        }
    }
    Ok(read)
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
