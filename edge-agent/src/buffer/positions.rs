//! Where sources have got to in what they read: one row a source, written by the transaction that adds the
//! readings before it. Neither is on disk without the other.
//!
//! A last commit that was cut short is the one exception: a start keeps what of its rows is readable, because they may
//! have been accepted. A row that came with a position says so in its mark, and is kept only with the position
//! behind it ([`kept_with_positions`]); otherwise its source reads it again.

use libsql::{Error, params};
use xxhash_rust::xxh3::xxh3_64;

use super::append::Position;
use super::connect::number;
use super::error::BufferError;
use super::file::File;
use super::handle::Buffer;
use super::row::{Cell, Key, small_mark};
use super::set_aside::OddRow;
use super::stored;

const TABLE: &str = "source_positions";

/// Columns of the table.
pub(super) const COLUMNS: usize = 7;

/// Most positions that stay: those of sources that are no longer configured give way, the oldest first.
const POSITIONS_MAX: i64 = 256;

/// A position as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeptPosition {
    pub(super) position: Position,
    /// The rows that were added with it; none when the last is below the first.
    pub(super) first_row: u64,
    pub(super) last_row: u64,
    pub(super) at_ms: u64,
}

impl KeptPosition {
    /// The position of a record of [`COLUMNS`] columns; `None` when it is none, or damaged.
    pub(super) fn check(id: i64, columns: &[Cell<'_>]) -> Option<Self> {
        let [
            _,
            Cell::Bytes(source),
            Cell::Bytes(place),
            Cell::Integer(first_row),
            Cell::Integer(last_row),
            Cell::Integer(at_ms),
            Cell::Integer(mark),
        ] = columns
        else {
            return None;
        };
        let position = Position::new(std::str::from_utf8(source).ok()?, place.to_vec())?;
        let kept = Self {
            position,
            first_row: u64::try_from(*first_row).ok()?,
            last_row: u64::try_from(*last_row).ok()?,
            at_ms: u64::try_from(*at_ms).ok()?,
        };
        (id == id_of(kept.position.source()) && *mark == kept.mark()).then_some(kept)
    }

    fn mark(&self) -> i64 {
        let numbers = [self.first_row, self.last_row, self.at_ms].map(u64::cast_signed);
        let source = self.position.source();
        let bytes = [source.as_bytes(), &[0], self.position.place()].concat();
        small_mark(&numbers, &bytes)
    }

    const fn covers(&self, row: u64) -> bool {
        self.first_row <= row && row <= self.last_row
    }
}

/// The number of a source's row: settings name a handful of sources, so that no two meet.
fn id_of(source: &str) -> i64 {
    (xxh3_64(source.as_bytes()) >> 1).cast_signed()
}

/// How many of these rows, ascending and without holes, are kept of a commit that was cut short, when these
/// positions were found of it: those that came with a position need one that lies behind rows that are all there.
pub(super) fn kept_with_positions(rows: &[Key], positions: &[KeptPosition]) -> usize {
    let mut count = rows.len();
    loop {
        let Some(last) = rows[..count].last().map(|key| key.seq) else {
            return 0;
        };
        let is_lost = |key: &Key| {
            let mut covering = positions.iter().filter(|kept| kept.covers(key.seq));
            let is_covered = covering.clone().next().is_some();
            key.has_position && !(is_covered && covering.all(|kept| kept.last_row <= last))
        };
        match rows[..count].iter().position(is_lost) {
            None => return count,
            Some(first_lost) => count = first_lost,
        }
    }
}

impl Buffer {
    /// What was kept last with a [`Position`] of this source.
    ///
    /// # Errors
    /// [`BufferError`].
    pub async fn position(&self, source: &str) -> Result<Option<Vec<u8>>, BufferError> {
        let source = source.to_owned();
        self.read_table(TABLE, async move |file, now_ms| {
            match file.position(id_of(&source)).await? {
                None => Ok((None, 0)),
                Some(Ok(kept)) if kept.position.source() == source => {
                    Ok((Some(kept.position.place().to_vec()), 0))
                }
                Some(found) => {
                    let content = match found {
                        Ok(kept) => format!("{kept:?}"),
                        Err(content) => content,
                    };
                    let odd = OddRow {
                        table: TABLE,
                        content,
                    };
                    file.transaction(async |file| {
                        file.keep_aside(&odd, now_ms).await?;
                        file.delete_position(id_of(&source)).await
                    })
                    .await?;
                    Ok((None, 1))
                }
            }
        })
        .await
    }
}

impl File {
    /// Keeps a position, within the transaction of the rows before it.
    pub(super) async fn keep_position(&self, kept: &KeptPosition) -> Result<(), Error> {
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let id = id_of(kept.position.source());
        self.connection
            .execute(
                "INSERT OR REPLACE INTO source_positions
                 (id, source, place, first_row, last_row, at_ms, mark) VALUES (?, ?, ?, ?, ?, ?, ?)",
                params![
                    id,
                    kept.position.source().as_bytes().to_vec(),
                    kept.position.place().to_vec(),
                    number(kept.first_row),
                    number(kept.last_row),
                    number(kept.at_ms),
                    kept.mark()
                ],
            )
            .await?;
        Ok(())
    }

    /// Leaves the newest positions only.
    pub(super) async fn limit_positions(&self) -> Result<(), Error> {
        let count = "SELECT count(*) FROM source_positions";
        if number(&self.connection, count).await? <= POSITIONS_MAX {
            return Ok(());
        }
        self.connection
            .execute(
                "DELETE FROM source_positions WHERE id NOT IN
                 (SELECT id FROM source_positions ORDER BY last_row DESC, at_ms DESC LIMIT ?)",
                [POSITIONS_MAX],
            )
            .await?;
        Ok(())
    }

    async fn delete_position(&self, id: i64) -> Result<(), Error> {
        self.connection
            .execute("DELETE FROM source_positions WHERE id = ?", [id])
            .await?;
        Ok(())
    }

    /// The position with this number, or what stands there instead.
    async fn position(&self, id: i64) -> Result<Option<Result<KeptPosition, String>>, Error> {
        let sql = "SELECT id, source, place, first_row, last_row, at_ms, mark
                   FROM source_positions WHERE id = ?";
        let mut rows = self.connection.query(sql, [id]).await?;
        let Some(row) = rows.next().await? else {
            return Ok(None);
        };
        let mut values = Vec::with_capacity(COLUMNS);
        for column in 0..COLUMNS as i32 {
            values.push(stored::plain(&row, column)?);
        }
        let cells: Vec<Cell<'_>> = values.iter().map(Cell::from).collect();
        let kept = KeptPosition::check(id, &cells);
        let content = || format!("{cells:?}").chars().take(2000).collect();
        Ok(Some(kept.ok_or_else(content)))
    }
}

#[cfg(test)]
mod tests {
    use schema::{Hlc, ObservedAt};

    use super::*;

    fn rows(first: u64, has_position: &str) -> Vec<Key> {
        let rows = has_position.chars().zip(first..);
        rows.map(|(kind, seq)| Key {
            seq,
            hlc: Hlc::new(1, 1),
            observed_at: ObservedAt::from_micros(1),
            sensor: 1,
            is_given: false,
            has_position: kind == 'p',
        })
        .collect()
    }

    fn at(source: &str, first_row: u64, last_row: u64) -> KeptPosition {
        KeptPosition {
            position: Position::new(source, b"{}".to_vec()).unwrap(),
            first_row,
            last_row,
            at_ms: 1,
        }
    }

    #[test]
    fn rows_of_a_commit_that_was_cut_short_are_kept_with_the_position_behind_them() {
        let check = |has_position: &str, positions: &[KeptPosition], count: usize| {
            let kept = kept_with_positions(&rows(11, has_position), positions);
            assert_eq!(kept, count, "{has_position} {positions:?}");
        };
        check("....", &[], 4);
        check("", &[], 0);
        // The page of the positions was not written.
        check(".pp.", &[], 1);
        check("pp..", &[at("a", 1, 10)], 0);
        check(".pp.", &[at("a", 12, 13)], 4);
        // Not all of its rows were written.
        check(".ppp", &[at("a", 12, 15)], 1);
        check(".ppp", &[at("a", 12, 14)], 4);
        // Two sources: one whole, one not; and one that is not known at all.
        check("pp.pp", &[at("a", 11, 12), at("b", 14, 16)], 3);
        check("pp.pp", &[at("a", 11, 12)], 3);
        // An earlier one that reaches into what is cut falls with it.
        check("p.p.p", &[at("a", 11, 13), at("b", 13, 16)], 0);
        // Of two appends of a source only the last has its position.
        check("ppp", &[at("a", 13, 13)], 0);
    }

    #[test]
    fn a_position_comes_back_and_every_flipped_bit_is_noticed() {
        let kept = at("boiler", 5, 9);
        let read = |id: i64, source: &[u8], place: &[u8], numbers: [i64; 4]| {
            let [first_row, last_row, at_ms, mark] = numbers.map(Cell::Integer);
            let (source, place) = (Cell::Bytes(source), Cell::Bytes(place));
            let cells = [Cell::Null, source, place, first_row, last_row, at_ms, mark];
            KeptPosition::check(id, &cells)
        };
        let (id, numbers) = (id_of("boiler"), [5, 9, 1, kept.mark()]);
        assert_eq!(read(id, b"boiler", b"{}", numbers), Some(kept));
        assert_eq!(read(id + 1, b"boiler", b"{}", numbers), None);
        assert_eq!(read(id, b"boilef", b"{}", numbers), None);
        assert_eq!(read(id, b"boiler", b"{]", numbers), None);
        for place in 0..4 {
            for bit in 0..64 {
                let mut wrong = numbers;
                wrong[place] ^= 1 << bit;
                assert_eq!(read(id, b"boiler", b"{}", wrong), None, "{place} {bit}");
            }
        }
    }
}
