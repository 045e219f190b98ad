//! Tables for people: columns below each other, no wider than the terminal.

use std::io::{IsTerminal, stdout};

use daemon::Failure;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::Answered;

/// Between two columns.
const GAP: usize = 2;

/// No column is made narrower than this.
const NARROWEST: usize = 8;

/// A column of a list: its head, and what an entry has in it.
#[derive(Clone, Copy)]
pub(crate) struct Column<T> {
    pub(crate) name: &'static str,
    pub(crate) cell: fn(&T) -> String,
}

/// Rows below a head.
#[derive(Debug)]
pub(crate) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// A list that is printed as it comes: a table for people, once it is whole, or each entry as a line
/// of JSON.
pub(crate) struct Listing<'c, T> {
    columns: &'c [Column<T>],
    table: Option<Table>,
}

impl<T> Column<T> {
    /// A column.
    pub(crate) const fn new(name: &'static str, cell: fn(&T) -> String) -> Self {
        Self { name, cell }
    }
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(head: impl IntoIterator<Item = &'static str>) -> Self {
        Self {
            head: head.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, whose cells hold no control characters.
    pub(crate) fn push(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Prints the table; when it is empty, says so on standard error.
    pub(crate) fn print(&self) {
        if self.rows.is_empty() {
            eprintln!("none");
            return;
        }
        for line in self.lines(terminal_width()) {
            super::print(&line);
        }
    }

    pub(crate) fn lines(&self, width_max: Option<usize>) -> Vec<String> {
        let head: Vec<String> = self.head.iter().map(|&name| name.to_owned()).collect();
        let mut widths = vec![0; head.len()];
        for row in std::iter::once(&head).chain(&self.rows) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        if let Some(width_max) = width_max {
            shrink(&mut widths, width_max);
        }
        std::iter::once(&head)
            .chain(&self.rows)
            .map(|row| line(row, &widths))
            .collect()
    }
}

impl<'c, T> Listing<'c, T> {
    /// A list without entries.
    pub(crate) fn new(columns: &'c [Column<T>], json: bool) -> Self {
        let table = || Table::new(columns.iter().map(|column| column.name));
        Self {
            columns,
            table: (!json).then(table),
        }
    }

    /// The next entry, which is `raw` as JSON.
    pub(crate) fn push(&mut self, raw: &Value, entry: &T) {
        match &mut self.table {
            Some(table) => table.push(self.columns.iter().map(|column| (column.cell)(entry))),
            None => super::print(&raw.to_string()),
        }
    }

    /// The next entry of a bridge's list.
    pub(crate) fn push_answered(&mut self, entry: &Answered<T>) -> Result<(), Failure>
    where
        T: DeserializeOwned,
    {
        match &mut self.table {
            Some(table) => {
                let body = entry.body()?;
                table.push(self.columns.iter().map(|column| (column.cell)(&body)));
            }
            None => super::print(&entry.raw.to_string()),
        }
        Ok(())
    }

    /// Nothing follows.
    pub(crate) fn end(self) {
        if let Some(table) = self.table {
            table.print();
        }
    }
}

/// Takes from the widest column, again and again, until all fit or none can give more.
fn shrink(widths: &mut [usize], width_max: usize) {
    let gaps = GAP * widths.len().saturating_sub(1);
    while gaps + widths.iter().sum::<usize>() > width_max {
        match widths.iter_mut().max() {
            Some(widest) if *widest > NARROWEST => *widest -= 1,
            _ => return,
        }
    }
}

fn line(row: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, &width) in row.iter().zip(widths) {
        let length = cell.chars().count();
        if length <= width {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - length + GAP));
        } else {
            line.extend(cell.chars().take(width - 1));
            line.push('…');
            line.extend(std::iter::repeat_n(' ', GAP));
        }
    }
    line.truncate(line.trim_end().len());
    line
}

/// How many characters a line of the terminal has; `None` where there is none, as in a pipe.
pub(super) fn terminal_width() -> Option<usize> {
    if !stdout().is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|&width| width > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["DEVICE", "LABELS"]);
        table.push(["press-7".to_owned(), "site=lyon line=3".to_owned()]);
        table.push(["ö".to_owned(), String::new()]);
        table
    }

    #[test]
    fn columns_stand_below_each_other() {
        assert_eq!(
            table().lines(None),
            ["DEVICE   LABELS", "press-7  site=lyon line=3", "ö"]
        );
    }

    #[test]
    fn the_widest_column_gives_way() {
        assert_eq!(
            table().lines(Some(20)),
            ["DEVICE   LABELS", "press-7  site=lyon …", "ö"]
        );
        // Narrower than that nothing can be read: the terminal wraps.
        assert_eq!(table().lines(Some(3))[1], "press-7  site=ly…");
    }
}
