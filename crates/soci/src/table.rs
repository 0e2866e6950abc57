//! Tables as Go's `text/tabwriter` lays them out with cells of at least 8 columns, 4 of them
//! padding: the form that scripts around `soci` take apart.

use soci_errors::printable;

use crate::output::Page;

/// Least width of a column, padding included.
const LEAST: usize = 8;
/// Spaces between columns.
const PADDING: usize = 4;

/// The table as lines. The last column is padded like the others.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> Page {
    let mut widths = header.map(|cell| cell.chars().count());
    let printed = |row: &[String; N]| row.each_ref().map(|cell| printable(cell).into_owned());
    let rows: Vec<[String; N]> = rows.iter().map(printed).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut page = Page::default();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(widths) {
            let width = width.saturating_add(PADDING).max(LEAST);
            text.push_str(&format!("{cell:<width$}"));
        }
        page.line(text);
    };
    line(&mut header.into_iter());
    for row in &rows {
        line(&mut row.iter().map(String::as_str));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_padded() {
        let text = table(
            ["DIGEST", "SIZE"],
            &[["sha256:0".to_owned(), "1".to_owned()]],
        );
        assert_eq!(
            text.as_str(),
            "DIGEST      SIZE    \nsha256:0    1       \n"
        );
    }
}
