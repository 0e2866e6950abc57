//! Text as it stands in help and comments, as roff: paragraphs between empty lines, what is indented as
//! it is, names in backquotes bold.

use clap_mangen::roff::{Roff, roman};

/// Adds a text. Each paragraph is begun with `.PP`, so that it can follow anything.
pub(crate) fn add(roff: &mut Roff, text: &str) {
    let mut open = false;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim().is_empty() {
            open = false;
        } else if is_indented(line) {
            let mut example = vec![line];
            while let Some(next) = lines.next_if(|next| is_indented(next) || next.is_empty()) {
                example.push(next);
            }
            roff.control("PP", []);
            as_it_is(roff, &example, "4");
            open = false;
        } else {
            if !open {
                roff.control("PP", []);
                open = true;
            }
            roff.text([roman(line)]);
        }
    }
}

/// Lines that are not filled, without their common indentation; `indent` is in letters.
pub(crate) fn as_it_is(roff: &mut Roff, lines: &[&str], indent: &str) {
    let filled = |line: &&&str| !line.trim().is_empty();
    let margin = |line: &str| line.len() - line.trim_start().len();
    let common = lines.iter().filter(filled).map(|line| margin(line)).min();
    let last = lines.iter().rposition(|line| !line.trim().is_empty());
    roff.control("RS", [indent]);
    roff.control("EX", []);
    for line in lines.iter().take(last.map_or(0, |last| last + 1)) {
        let line = line.get(common.unwrap_or(0)..).unwrap_or_default();
        roff.text([roman(line)]);
    }
    roff.control("EE", []);
    roff.control("RE", []);
}

fn is_indented(line: &str) -> bool {
    line.starts_with("  ") && !line.trim().is_empty()
}

/// The last touch to a whole page, also to what others made of it: names in backquotes become bold,
/// characters that groff takes for typography stay what they are (examples are to be copied), no
/// paragraph begins right after a heading, where it already has begun, and empty lines are said in roff.
pub(crate) fn polished(roff: &str) -> String {
    let mut page = String::with_capacity(roff.len());
    let mut after_heading = false;
    for line in roff.replace(".br\n\n.br\n", ".sp\n").lines() {
        if line == ".PP" && after_heading {
            continue;
        }
        after_heading = line.starts_with(".SH") || line.starts_with(".SS");
        if line.starts_with('.') {
            page.push_str(line);
        } else {
            page.push_str(&polished_line(line));
        }
        page.push('\n');
    }
    page
}

fn polished_line(line: &str) -> String {
    let paired = line.matches('`').count().is_multiple_of(2);
    let mut polished = String::with_capacity(line.len());
    for (at, part) in line.split('`').enumerate() {
        polished.push_str(match at {
            0 => "",
            _ if !paired => "\\(ga",
            at if !at.is_multiple_of(2) => "\\fB",
            _ => "\\fR",
        });
        polished.push_str(&part.replace('~', "\\(ti").replace('^', "\\(ha"));
    }
    polished
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_examples_and_names_are_distinguished() {
        let mut roff = Roff::new();
        roff.control("SH", ["NOTES"]);
        add(
            &mut roff,
            "One `soci-x`\n.two ~/a\n\nThen:\n    a | b ^`\n      c\n\nend it's",
        );
        let expected = r"
.SH NOTES
One \fBsoci\-x\fR
\&.two \(ti/a
.PP
Then:
.PP
.RS 4
.EX
a | b \(ha\(ga
  c
.EE
.RE
.PP
end it\*(Aqs
";
        assert!(
            polished(&roff.render()).ends_with(expected.trim_start()),
            "{}",
            polished(&roff.render())
        );
    }
}
