//! Tables as Go's `text/tabwriter` lays them out with cells of at least 8 columns, 4 of them
//! padding: the form that scripts around `soci` take apart.

/// Least width of a column, padding included.
const LEAST: usize = 8;
/// Spaces between columns.
const PADDING: usize = 4;

/// The table as text. The last column is padded like the others.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = header.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        for (cell, width) in cells.zip(widths) {
            let width = width.saturating_add(PADDING).max(LEAST);
            out.push_str(&format!("{cell:<width$}"));
        }
        out.push('\n');
    };
    line(&mut header.into_iter());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    out
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
        assert_eq!(text, "DIGEST      SIZE    \nsha256:0    1       \n");
    }
}
