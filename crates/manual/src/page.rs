//! The page of a command: what its definition says, in the order of `man-pages(7)`.

use clap::{Arg, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::{DATE, MANUAL, ManualPage, text};

/// Where the commands of a command are described.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Commands {
    /// On pages of their own: `soci-index-list(1)`.
    #[default]
    Elsewhere,
    /// On the page itself.
    Here,
}

/// A section that no definition holds. Text as in help: empty lines part paragraphs, indented lines
/// stay as they are, names stand in backquotes.
#[derive(Debug, Clone, Copy)]
pub enum Section<'a> {
    /// A heading in capitals, and its text.
    Text(&'a str, &'a str),
    /// A heading in capitals, and things with what each is.
    List(&'a str, &'a [(&'a str, &'a str)]),
}

/// The parts of a page that the definition of its command does not have.
#[derive(Debug, Clone, Copy, Default)]
pub struct CommandPage<'a> {
    /// The chapter of the manual: `1`, or `8` for what only root runs.
    pub chapter: &'a str,
    /// The version of the program.
    pub version: &'a str,
    /// More of the description, after what `--help` says.
    pub description: &'a str,
    /// Where the commands below it are described.
    pub commands: Commands,
    /// Sections between options and environment.
    pub sections: &'a [Section<'a>],
    /// Environment variables other than those that set options.
    pub environment: &'a [(&'a str, &'a str)],
    /// Files, and what each is.
    pub files: &'a [(&'a str, &'a str)],
    /// Other pages: `soci(1)`.
    pub see_also: &'a [&'a str],
}

/// The page of a command, which has been built (`Command::build`) together with those above it.
#[must_use]
pub fn command_page(command: &Command, page: &CommandPage<'_>) -> ManualPage {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let program = command.get_bin_name().unwrap_or(name);
    let program = program.split(' ').next().unwrap_or_default();
    let is_whole = program == name;
    let file = format!("{name}.{}", page.chapter);
    let globals = global_options(command);
    let notes = Notes::of(command);

    let man = Man::new(shown(command, is_whole))
        .title(name.to_uppercase())
        .section(page.chapter)
        .date(DATE)
        .source(format!("{program} {}", page.version))
        .manual(MANUAL);
    let mut made = Made::default();
    made.take(|out| man.render_title(out));
    made.take(|out| man.render_name_section(out));
    made.take(|out| man.render_synopsis_section(out));
    made.take(|out| man.render_description_section(out));
    made.add(|roff| text::add(roff, page.description));
    made.take(|out| man.render_options_section(out));
    if !is_whole && !globals.is_empty() {
        let above = format!("{program}({})", page.chapter);
        let text = format!("Described in {above}: {}.", globals.join(", "));
        made.section("GLOBAL OPTIONS", |roff| text::add(roff, &text));
    }
    if command.get_subcommands().any(|below| !below.is_hide_set()) {
        match page.commands {
            Commands::Elsewhere => {
                made.section("COMMANDS", |roff| pages_below(roff, command, page))
            }
            Commands::Here => made.section("COMMANDS", |roff| commands_below(roff, command, name)),
        }
    }
    for section in page.sections {
        match section {
            Section::Text(heading, body) => made.section(heading, |roff| text::add(roff, body)),
            Section::List(heading, items) => made.section(heading, |roff| list(roff, items)),
        }
    }
    let stand_ins = stand_ins(command, is_whole);
    let stand_ins: Vec<(&str, &str)> = stand_ins
        .iter()
        .map(|(name, what)| (name.as_str(), what.as_str()))
        .chain(page.environment.iter().copied())
        .collect();
    made.items("ENVIRONMENT", &stand_ins);
    made.items("FILES", page.files);
    if !notes.text.is_empty() {
        made.section("NOTES", |roff| text::add(roff, &notes.text));
    }
    if !notes.examples.is_empty() {
        made.section("EXAMPLES", |roff| {
            text::as_it_is(roff, &notes.examples.lines().collect::<Vec<_>>(), "4");
        });
    }
    if !page.see_also.is_empty() {
        made.section("SEE ALSO", |roff| see_also(roff, page.see_also));
    }
    ManualPage {
        file,
        text: made.page(),
    }
}

/// A page that is being made.
#[derive(Default)]
pub(crate) struct Made {
    text: String,
}

impl Made {
    /// Takes what `clap_mangen` writes.
    fn take(&mut self, write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) {
        let mut out = Vec::new();
        // Writing to memory cannot fail.
        let _ = write(&mut out);
        self.push(&String::from_utf8_lossy(&out));
    }

    pub(crate) fn add(&mut self, write: impl FnOnce(&mut Roff)) {
        let mut roff = Roff::new();
        write(&mut roff);
        self.push(&roff.render());
    }

    pub(crate) fn section(&mut self, heading: &str, write: impl FnOnce(&mut Roff)) {
        self.add(|roff| {
            roff.control("SH", [heading]);
            write(roff);
        });
    }

    fn items(&mut self, heading: &str, items: &[(&str, &str)]) {
        if !items.is_empty() {
            self.section(heading, |roff| list(roff, items));
        }
    }

    /// Each piece of roff begins with the same definition of the apostrophe.
    fn push(&mut self, piece: &str) {
        let preamble = Roff::new().render();
        self.text
            .push_str(piece.strip_prefix(&preamble).unwrap_or(piece));
    }

    pub(crate) fn page(&self) -> String {
        Roff::new().render() + &text::polished(&self.text)
    }
}

/// The command with the usage of its help as synopsis, a description of whole sentences, and without the
/// options that are on the page of the whole program.
fn shown(command: &Command, is_whole: bool) -> Command {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim().to_owned();
    let long = command.get_long_about().map(ToString::to_string);
    let long = long.unwrap_or_else(|| about(command));
    let (first, rest) = long.split_once('\n').unwrap_or((&long, ""));
    let mut shown = command
        .clone()
        .override_usage(usage)
        .long_about(format!("{}\n{rest}", with_full_stop(first)));
    if !is_whole {
        for argument in command
            .get_arguments()
            .filter(|argument| argument.is_global_set())
        {
            shown = shown.mut_arg(argument.get_id(), |argument| argument.hide(true));
        }
    }
    shown
}

fn global_options(command: &Command) -> Vec<String> {
    command
        .get_arguments()
        .filter(|argument| argument.is_global_set() && !argument.is_hide_set())
        .filter_map(|argument| Some(format!("`--{}`", argument.get_long()?)))
        .collect()
}

/// Environment variables that stand in for options of this page.
fn stand_ins(command: &Command, is_whole: bool) -> Vec<(String, String)> {
    let here = |argument: &&Arg| !argument.is_hide_set() && (is_whole || !argument.is_global_set());
    command
        .get_arguments()
        .filter(here)
        .filter_map(|argument| {
            let name = argument.get_env()?.to_str()?.to_owned();
            Some((name, format!("Stands in for `--{}`.", argument.get_long()?)))
        })
        .collect()
}

fn pages_below(roff: &mut Roff, command: &Command, page: &CommandPage<'_>) {
    for below in command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
    {
        let name = below.get_display_name().unwrap_or_else(|| below.get_name());
        roff.control("TP", []);
        roff.text([bold(name), roman(format!("({})", page.chapter))]);
        roff.text([roman(about(below))]);
    }
}

/// Every command that does something, with the words that call it.
fn commands_below(roff: &mut Roff, command: &Command, program: &str) {
    for below in command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
    {
        if below.has_subcommands() {
            commands_below(roff, below, program);
            continue;
        }
        let words = below.get_bin_name().unwrap_or_else(|| below.get_name());
        let words = words.strip_prefix(program).unwrap_or(words).trim();
        roff.control("TP", []);
        roff.text([bold(words)]);
        let about = match below.get_long_about() {
            Some(long) => long.to_string(),
            None => about(below),
        };
        for line in about.lines().filter(|line| !line.trim().is_empty()) {
            roff.text([roman(with_full_stop(line))]);
        }
    }
}

fn about(command: &Command) -> String {
    command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default()
}

/// Help texts begin with a line without a full stop, because it is also shown alone.
fn with_full_stop(line: &str) -> String {
    let ends = line.ends_with(['.', ':', '!', '?']);
    format!("{line}{}", if ends { "" } else { "." })
}

fn list(roff: &mut Roff, items: &[(&str, &str)]) {
    for (item, what) in items {
        roff.control("TP", []);
        roff.text([bold(*item)]);
        for line in what.lines() {
            roff.text([roman(line)]);
        }
    }
}

/// `soci(1), ctr(8)`, which viewers make links of.
pub(crate) fn see_also(roff: &mut Roff, pages: &[&str]) {
    let last = pages.len().saturating_sub(1);
    for (at, page) in pages.iter().enumerate() {
        let (name, chapter) = page.split_once('(').unwrap_or((page, ")"));
        let end = if at == last { "" } else { "," };
        roff.text([bold(name), roman(format!("({chapter}{end}"))]);
    }
}

/// What follows the options in a help text.
#[derive(Default)]
struct Notes {
    text: String,
    examples: String,
}

impl Notes {
    fn of(command: &Command) -> Self {
        let after = command
            .get_after_long_help()
            .or_else(|| command.get_after_help());
        let after = after.map(ToString::to_string).unwrap_or_default();
        let mut notes = Self::default();
        let mut in_examples = false;
        for line in after.lines() {
            match line {
                "Example:" | "Examples:" => {
                    in_examples = true;
                    continue;
                }
                // What follows the last example.
                _ if !line.is_empty() && !line.starts_with(' ') => in_examples = false,
                _ => {}
            }
            let to = if in_examples {
                &mut notes.examples
            } else {
                &mut notes.text
            };
            to.push_str(line);
            to.push('\n');
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_stand_in_the_order_of_the_manual_and_global_options_on_the_page_of_the_whole() {
        let mut program = Command::new("x")
            .about("Does x")
            .disable_help_subcommand(true)
            .arg(Arg::new("root").long("root").global(true).env("X_ROOT"))
            .subcommand(
                Command::new("y")
                    .about("Does y")
                    .after_help("See `x`.\n\nExample:\n  x y\n\nThen:\n  z")
                    .arg(Arg::new("file").env("X_FILE").long("file")),
            )
            .subcommand(Command::new("z").hide(true));
        program.build();
        let headings = |page: &ManualPage| -> Vec<String> {
            let lines = page.text.lines();
            let headings = lines.filter_map(|line| line.strip_prefix(".SH "));
            headings.map(|heading| heading.replace('"', "")).collect()
        };
        let about = CommandPage {
            chapter: "1",
            version: "7",
            description: "It is `x`.",
            sections: &[Section::List("EXIT STATUS", &[("0", "Done.")])],
            files: &[("/x", "The file.")],
            see_also: &["z(8)"],
            ..CommandPage::default()
        };
        let whole = command_page(&program, &about);
        assert_eq!(whole.file, "x.1");
        assert_eq!(
            headings(&whole).join(", "),
            "NAME, SYNOPSIS, DESCRIPTION, OPTIONS, COMMANDS, EXIT STATUS, ENVIRONMENT, FILES, SEE ALSO"
        );
        assert!(
            whole.text.contains("Does x.\n.PP\nIt is \\fBx\\fR.\n"),
            "{}",
            whole.text
        );
        assert!(
            whole.text.contains("\\fBx\\-y\\fR(1)\nDoes y\n"),
            "{}",
            whole.text
        );
        assert!(!whole.text.contains("x\\-z"), "{}", whole.text);
        let here = CommandPage {
            commands: Commands::Here,
            ..about
        };
        let whole = command_page(&program, &here);
        assert!(
            whole.text.contains("\\fBy\\fR\nDoes y.\n"),
            "{}",
            whole.text
        );

        let part = program.find_subcommand("y").unwrap();
        let part = command_page(part, &about);
        assert_eq!(part.file, "x-y.1");
        assert_eq!(
            headings(&part).join(", "),
            "NAME, SYNOPSIS, DESCRIPTION, OPTIONS, GLOBAL OPTIONS, EXIT STATUS, ENVIRONMENT, FILES, NOTES, EXAMPLES, SEE ALSO"
        );
        for text in [
            ".SH \"GLOBAL OPTIONS\"\nDescribed in x(1): \\fB\\-\\-root\\fR.\n",
            ".SH ENVIRONMENT\n.TP\n\\fBX_FILE\\fR\n",
            ".SH NOTES\nSee \\fBx\\fR.\n.PP\nThen:\n.PP\n.RS 4\n.EX\nz\n.EE\n",
            ".SH EXAMPLES\n.RS 4\n.EX\nx y\n.EE\n",
        ] {
            assert!(part.text.contains(text), "{text}: {}", part.text);
        }
        assert!(!part.text.contains("X_ROOT"), "{}", part.text);
    }
}
