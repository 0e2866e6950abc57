//! `docs/cli.md`, generated from the definition of the command line.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Command, CommandFactory as _};

use crate::cli::Cli;

const HEAD: &str = "\
# Commands of `soci`

Generated from the program: `UPDATE_DOCS=1 cargo test -p soci the_reference` writes it again, and the
same test in CI compares it. Global options stand before or after the command. `soci man DIR` writes the same as
manual pages, which `make install` installs.
";

/// The page.
fn page() -> String {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut page = String::from(HEAD);
    section(&command, &mut page);
    page
}

fn section(command: &Command, page: &mut String) {
    let level = command.get_bin_name().unwrap_or("soci");
    let mut shown = command.clone().term_width(100);
    if level != "soci" {
        // They are the same everywhere and stand in the first section.
        for id in [
            "address",
            "namespace",
            "timeout",
            "debug",
            "content_store",
            "root",
        ] {
            shown = shown.mut_arg(id, |argument| argument.hide(true));
        }
    }
    let help = shown.render_long_help().to_string();
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "\n## `{level}`\n\n```text\n{}\n```\n",
        help.trim_end()
    );
    for below in command.get_subcommands() {
        if below.get_name() != "help" {
            section(below, page);
        }
    }
}

#[test]
fn the_reference_is_what_the_program_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/cli.md is not what the program says: UPDATE_DOCS=1 cargo test -p soci the_reference"
    );
}
