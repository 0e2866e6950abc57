//! The page of a configuration file, made of the comments in the file itself: comments before a table
//! describe it, comments before keys describe the keys up to the next comment.

use clap_mangen::roff::{Roff, bold, roman};

use crate::page::{Made, see_also};
use crate::{DATE, MANUAL, ManualPage, text};

/// The parts of a page that its file does not have.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConfigurationPage<'a> {
    /// The name of the page: `soci-snapshotter-grpc.toml`.
    pub name: &'a str,
    /// What it is, in half a line.
    pub about: &'a str,
    /// The program that reads the file, and its version.
    pub source: &'a str,
    /// Where the file is.
    pub path: &'a str,
    /// Before what the file says of itself.
    pub description: &'a str,
    /// Other pages: `soci(1)`.
    pub see_also: &'a [&'a str],
}

/// The page of a TOML file in which every key stands with its default behind a `#`, and text behind
/// a `#` and a space. Its first comment, without the first line, is about the file.
#[must_use]
pub fn configuration_page(file: &str, page: &ConfigurationPage<'_>) -> ManualPage {
    let mut made = Made::default();
    made.add(|roff| {
        let title = page.name.to_uppercase();
        roff.control("TH", [&title, "5", DATE, page.source, MANUAL]);
        roff.control("SH", ["NAME"]);
        roff.text([roman(format!("{} - {}", page.name, page.about))]);
        roff.control("SH", ["SYNOPSIS"]);
        roff.text([bold(page.path)]);
    });
    let (head, keys) = file.split_once("\n\n").unwrap_or((file, ""));
    let head: Vec<&str> = head.lines().skip(1).filter_map(comment).collect();
    made.section("DESCRIPTION", |roff| {
        text::add(roff, page.description);
        text::add(roff, &head.join("\n"));
    });
    made.section("KEYS", |roff| {
        let mut body = Body::new(roff);
        keys.lines().for_each(|line| body.line(line));
        body.flush();
    });
    made.section("SEE ALSO", |roff| see_also(roff, page.see_also));
    ManualPage {
        file: format!("{}.5", page.name),
        text: made.page(),
    }
}

/// The text of a comment; `#key` is none.
fn comment(line: &str) -> Option<&str> {
    let text = line.strip_prefix('#')?;
    if text.is_empty() {
        Some(text)
    } else {
        text.strip_prefix(' ')
    }
}

/// What follows the first comment.
struct Body<'a> {
    roff: &'a mut Roff,
    /// Comment lines of what comes.
    comment: Vec<&'a str>,
    /// Keys that they are about.
    keys: Vec<&'a str>,
}

impl<'a> Body<'a> {
    fn new(roff: &'a mut Roff) -> Self {
        Self {
            roff,
            comment: Vec::new(),
            keys: Vec::new(),
        }
    }

    fn line(&mut self, line: &'a str) {
        if let Some(text) = comment(line) {
            if !self.keys.is_empty() {
                self.flush();
            }
            self.comment.push(text);
        } else if let Some(key) = line.strip_prefix('#') {
            self.keys.push(key);
        } else if line.starts_with('[') {
            if !self.keys.is_empty() {
                self.flush();
            }
            self.roff.control("SS", [line]);
            self.flush();
        } else {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let comment = std::mem::take(&mut self.comment);
        let keys = std::mem::take(&mut self.keys);
        // Below their text as it is set, or without any one below the other.
        let (first, next) = if comment.is_empty() {
            ("PP", "br")
        } else {
            ("TP", "TQ")
        };
        for (at, key) in keys.iter().enumerate() {
            self.roff.control(if at == 0 { first } else { next }, []);
            match key.split_once(" = ") {
                Some((name, value)) => self.roff.text([bold(name), roman(format!(" = {value}"))]),
                None => self.roff.text([bold(*key)]),
            };
        }
        if keys.is_empty() && !comment.is_empty() {
            self.roff.control("PP", []);
        }
        for lines in comment.chunk_by(|one, other| is_toml(one) == is_toml(other)) {
            if lines.first().is_some_and(|line| is_toml(line)) {
                // Below a key the text is indented by seven letters.
                let (gap, indent) = if keys.is_empty() {
                    ("PP", "4")
                } else {
                    ("IP", "11")
                };
                self.roff.control(gap, []);
                text::as_it_is(self.roff, lines, indent);
            } else {
                lines.iter().for_each(|line| {
                    self.roff.text([roman(*line)]);
                });
            }
        }
    }
}

/// An example in a comment: a table, or a key and its value.
fn is_toml(line: &str) -> bool {
    let key = line.split_once(" = ").map(|(key, _)| key);
    line.starts_with('[') || key.is_some_and(|key| !key.contains(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# x: /etc/x.toml
#
# Every key.
# Of this file.

# One.
#one = 1
#two = \"2\"
# Three. As in:
# [a.b]
# c = 3
#three = -3

# A table,
# described.
[table]
#four = 4
# More of it, see
# [[table.more]]
# five = 5
";

    #[test]
    fn comments_are_about_the_keys_and_the_table_that_follow() {
        let page = configuration_page(
            FILE,
            &ConfigurationPage {
                name: "x.toml",
                about: "what x does",
                source: "x 1",
                path: "/etc/x.toml",
                description: "It is TOML.",
                see_also: &["x(1)", "y(8)"],
            },
        );
        assert_eq!(page.file, "x.toml.5");
        let (_, text) = page.text.split_once(".SH SYNOPSIS\n").unwrap();
        let expected = r#"
\fB/etc/x.toml\fR
.SH DESCRIPTION
It is TOML.
.PP
Every key.
Of this file.
.SH KEYS
.TP
\fBone\fR = 1
.TQ
\fBtwo\fR = "2"
One.
.TP
\fBthree\fR = \-3
Three. As in:
.IP
.RS 11
.EX
[a.b]
c = 3
.EE
.RE
.SS [table]
A table,
described.
.PP
\fBfour\fR = 4
.PP
More of it, see
.PP
.RS 4
.EX
[[table.more]]
five = 5
.EE
.RE
.SH "SEE ALSO"
\fBx\fR(1),
\fBy\fR(8)
"#;
        assert_eq!(text.trim_end(), expected.trim());
    }
}
