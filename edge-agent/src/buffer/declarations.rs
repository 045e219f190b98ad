//! What was declared of sensors, in the file: one row a sensor. A row that makes no sense is set aside; its sensor is then
//! declared as if for the first time.

use libsql::{Error, params};
use schema::limits::{DECLARED_SENSORS_MAX, SQL_INTEGER_MAX};
use schema::{Hlc, SensorDeclaration, SensorName, envelope};
use xxhash_rust::xxh3::xxh3_64;

use super::error::BufferError;
use super::file::File;
use super::handle::Buffer;
use super::row::{Cell, small_mark};
use super::set_aside::OddRow;
use super::stored;

const TABLE: &str = "sensor_declarations";

/// Columns of the table. Another count than that of any other table that is picked from a damaged file.
const COLUMNS: usize = 8;

/// What was declared of a sensor.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptDeclaration {
    /// Which sensor, as its readings name it.
    pub sensor: SensorName,
    /// What its source says.
    pub source: SensorDeclaration,
    /// That, under what the settings say: what is sent.
    pub declared: SensorDeclaration,
    /// The version that was sent last.
    pub version: Hlc,
    /// Where it is on its way.
    pub state: DeclarationState,
}

/// Where a declaration is on its way to the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeclarationState {
    /// It changed since the version that was sent last.
    Changed,
    /// It is to be sent, until the bridge has noted it.
    Stamped,
    /// The database has it.
    Noted,
}

impl DeclarationState {
    const fn number(self) -> i64 {
        match self {
            Self::Changed => 0,
            Self::Stamped => 1,
            Self::Noted => 2,
        }
    }

    const fn of(number: i64) -> Option<Self> {
        match number {
            0 => Some(Self::Changed),
            1 => Some(Self::Stamped),
            2 => Some(Self::Noted),
            _ => None,
        }
    }
}

impl Buffer {
    /// What was declared, by sensor; rows that make no sense are set aside.
    ///
    /// # Errors
    /// [`BufferError`].
    pub async fn declarations(&self) -> Result<Vec<KeptDeclaration>, BufferError> {
        self.read_table(TABLE, async |file, now_ms| {
            let (kept, odd) = file.look_at_declarations().await?;
            let odd_rows = odd.len() as u64;
            if !odd.is_empty() {
                let set_aside = async move |file: &mut File| {
                    for (id, row) in odd {
                        file.keep_aside(&row, now_ms).await?;
                        file.delete_declaration(id).await?;
                    }
                    Ok(())
                };
                file.transaction(set_aside).await?;
            }
            Ok((kept, odd_rows))
        })
        .await
    }

    /// Keeps declarations in one commit, each in the place of what was kept of its sensor.
    ///
    /// # Errors
    /// [`BufferError`]; then none was kept.
    pub async fn keep_declarations(&self, kept: Vec<KeptDeclaration>) -> Result<(), BufferError> {
        self.write_table(async move |file, now_ms| {
            file.transaction(async move |file| {
                for one in &kept {
                    file.keep_declaration(one, now_ms).await?;
                }
                Ok(())
            })
            .await
        })
        .await
    }
}

impl File {
    async fn keep_declaration(&self, kept: &KeptDeclaration, now_ms: u64) -> Result<(), Error> {
        let bytes = |of: &SensorDeclaration| envelope::encode(of).unwrap_or_default();
        let (source, declared) = (bytes(&kept.source), bytes(&kept.declared));
        let name = kept.sensor.as_str();
        let numbers = [
            i64::try_from(kept.version.bits()).unwrap_or(i64::MAX),
            kept.state.number(),
            i64::try_from(now_ms).unwrap_or(i64::MAX),
        ];
        let mark = mark(name.as_bytes(), &source, &declared, numbers);
        let [hlc, state, at_ms] = numbers;
        self.connection
            .execute(
                "INSERT OR REPLACE INTO sensor_declarations
                 (id, name, source, declared, hlc, state, at_ms, mark)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                params![
                    id_of(name),
                    name.as_bytes().to_vec(),
                    source,
                    declared,
                    hlc,
                    state,
                    at_ms,
                    mark
                ],
            )
            .await?;
        Ok(())
    }

    async fn delete_declaration(&self, id: i64) -> Result<(), Error> {
        self.connection
            .execute("DELETE FROM sensor_declarations WHERE id = ?", [id])
            .await?;
        Ok(())
    }

    /// The declarations that make sense, and the rows that do not.
    async fn look_at_declarations(
        &self,
    ) -> Result<(Vec<KeptDeclaration>, Vec<(i64, OddRow)>), Error> {
        let (mut kept, mut odd) = (Vec::new(), Vec::new());
        let sql = "SELECT id, name, source, declared, hlc, state, at_ms, mark
                   FROM sensor_declarations ORDER BY id";
        let mut rows = self.connection.query(sql, ()).await?;
        while let Some(row) = rows.next().await? {
            let mut values = Vec::with_capacity(COLUMNS);
            for column in 0..COLUMNS as i32 {
                values.push(stored::plain(&row, column)?);
            }
            let cells: Vec<Cell<'_>> = values.iter().map(Cell::from).collect();
            let id = row.get(0)?;
            match declaration(id, &cells) {
                Some(one) if kept.len() < DECLARED_SENSORS_MAX => kept.push(one),
                _ => {
                    let content = format!("{cells:?}").chars().take(2000).collect();
                    let table = TABLE;
                    odd.push((id, OddRow { table, content }));
                }
            }
        }
        Ok((kept, odd))
    }
}

/// The number of a sensor's row. Of two sensors that meet in one the later stays; the other is declared at each start.
fn id_of(name: &str) -> i64 {
    (xxh3_64(name.as_bytes()) >> 1).cast_signed()
}

fn mark(name: &[u8], source: &[u8], declared: &[u8], numbers: [i64; 3]) -> i64 {
    let sizes = [name.len(), source.len()].map(|size| size as i64);
    let numbers = [numbers.as_slice(), &sizes].concat();
    small_mark(&numbers, &[name, source, declared].concat())
}

/// The declaration of a row; `None` when the agent cannot have written it.
fn declaration(id: i64, columns: &[Cell<'_>]) -> Option<KeptDeclaration> {
    let [
        _,
        Cell::Bytes(name),
        Cell::Bytes(source),
        Cell::Bytes(declared),
        Cell::Integer(hlc),
        Cell::Integer(state),
        Cell::Integer(at_ms),
        Cell::Integer(found),
    ] = columns
    else {
        return None;
    };
    if *found != mark(name, source, declared, [*hlc, *state, *at_ms]) {
        return None;
    }
    let text = std::str::from_utf8(name).ok()?;
    let read = |bytes: &[u8]| {
        let read: SensorDeclaration = envelope::decode(bytes).ok()?;
        read.validate().ok().map(|()| read)
    };
    let version = u64::try_from(*hlc)
        .ok()
        .filter(|bits| *bits <= SQL_INTEGER_MAX)?;
    (id == id_of(text)).then_some(KeptDeclaration {
        sensor: text.parse().ok()?,
        source: read(source)?,
        declared: read(declared)?,
        version: Hlc::from_bits(version),
        state: DeclarationState::of(*state)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_row_is_noticed() {
        let unit = |unit: &str| SensorDeclaration {
            unit: Some(unit.to_owned()),
            ..SensorDeclaration::default()
        };
        let bytes = |of: &SensorDeclaration| envelope::encode(of).unwrap();
        let (source, declared) = (bytes(&unit("K")), bytes(&unit("Cel")));
        let numbers = [7, 1, 9];
        let sound = mark(b"oil", &source, &declared, numbers);
        let read = |name: &[u8], source: &[u8], declared: &[u8], numbers: [i64; 4]| {
            let [hlc, state, at_ms, mark] = numbers.map(Cell::Integer);
            let [name, source, declared] = [name, source, declared].map(Cell::Bytes);
            let cells = [Cell::Null, name, source, declared, hlc, state, at_ms, mark];
            declaration(id_of("oil"), &cells)
        };
        let whole = [7, 1, 9, sound];
        let kept = read(b"oil", &source, &declared, whole).unwrap();
        assert_eq!((kept.source, kept.declared), (unit("K"), unit("Cel")));
        assert_eq!(kept.state, DeclarationState::Stamped);
        assert_eq!(read(b"oik", &source, &declared, whole), None);
        for at in 0..8 * source.len() {
            let mut wrong = source.clone();
            wrong[at / 8] ^= 1 << (at % 8);
            assert_eq!(read(b"oil", &wrong, &declared, whole), None);
        }
        for place in 0..4 {
            for bit in 0..64 {
                let mut wrong = whole;
                wrong[place] ^= 1 << bit;
                assert_eq!(read(b"oil", &source, &declared, wrong), None);
            }
        }
        // Bytes that move from one to the other are others.
        assert_eq!(read(b"oil", &declared, &source, whole), None);
    }
}
