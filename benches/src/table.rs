//! Aligned tables, and numbers as people read them.

use std::fmt;
use std::time::Duration;

/// Rows of cells; the first column is aligned to the left, the others to the right.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads.
    #[must_use]
    pub fn new(heads: &[&str]) -> Self {
        let mut table = Self::default();
        table.row(heads.iter().copied());
        table
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if column == 0 {
                    line.push_str(&format!("{cell:<width$}"));
                } else {
                    line.push_str(&format!("  {cell:>width$}"));
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Seconds with two decimals.
#[must_use]
pub fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// Millions of bytes with one decimal.
#[must_use]
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", approximate(bytes) / 1e6)
}

/// Millions of bytes per second.
#[must_use]
pub fn rate(bytes: u64, duration: Duration) -> String {
    format!(
        "{:.0} MB/s",
        approximate(bytes) / 1e6 / duration.as_secs_f64().max(1e-9)
    )
}

/// A share in percent.
#[must_use]
pub fn percent(part: u64, whole: u64) -> String {
    format!(
        "{:.0} %",
        100.0 * approximate(part) / approximate(whole.max(1))
    )
}

/// How many times `less` fits into `more`.
#[must_use]
pub fn times(more: f64, less: f64) -> String {
    format!("{:.2} x", more / less.max(1e-9))
}

/// The middle of an odd number of values.
#[must_use]
pub fn median<T: Copy + Ord>(values: impl IntoIterator<Item = T>) -> Option<T> {
    let mut sorted: Vec<T> = values.into_iter().collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

/// Exact up to 2^53, more than any size here.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(crate) fn approximate(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["", "lazy", "overlayfs"]);
        table.row(["pull", "0.62 s", "4.90 s"]);
        assert_eq!(
            table.to_string(),
            "        lazy  overlayfs\npull  0.62 s     4.90 s\n"
        );
        assert_eq!(median([3, 1, 2]), Some(2));
    }
}
