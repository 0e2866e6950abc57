//! Every `soci` command in the documents is one that this program takes, and every example of containerd's
//! configuration is whole. Commands in `docs/cli.md` are left out: it is made of help texts, which are wrapped
//! within commands.

use std::path::{Path, PathBuf};

use clap::Parser as _;

use crate::cli::Cli;

fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = vec![root.join("README.md")];
    for folder in [root.join("docs"), root.join("docs/decisions")] {
        let entries = std::fs::read_dir(folder).unwrap();
        found.extend(entries.map(|entry| entry.unwrap().path()));
    }
    found.retain(|path| path.extension().is_some_and(|end| end == "md"));
    found.sort();
    found
}

/// The lines of code blocks, indented ones and fenced ones. A line that ends with a backslash is joined to the
/// next.
fn code(text: &str) -> Vec<String> {
    let (mut lines, mut fenced, mut joined): (Vec<String>, _, _) = (Vec::new(), false, false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced || line.starts_with("    ") {
            let (line, goes_on) = match line.trim().strip_suffix('\\') {
                Some(start) => (start, true),
                None => (line.trim(), false),
            };
            match lines.last_mut().filter(|_| joined) {
                Some(last) => last.push_str(line),
                None => lines.push(line.to_owned()),
            }
            joined = goes_on;
        }
    }
    lines
}

/// The words of the commands of `soci` in a line of shell: what stands before operators, comments and remarks
/// in brackets. Drawings have none.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for part in line.split(['|', ';', '&', '#', '(']) {
        let mut words = part
            .split_whitespace()
            .take_while(|word| !word.starts_with(['>', '<']))
            .map(|word| word.trim_matches(['"', '\'']).to_owned())
            .skip_while(|word| word == "sudo" || word == "$" || word.contains('='));
        let Some(program) = words.next() else {
            continue;
        };
        let words: Vec<String> = words.collect();
        let is_drawing = words.first().is_some_and(|word| word.starts_with('─'));
        if (program == "soci" || program.ends_with("/soci")) && !is_drawing {
            found.push(words);
        }
    }
    found
}

/// Placeholders that stand for values, which must parse.
fn filled_in(word: &str) -> String {
    match word {
        "PLATFORM" => "linux/amd64".to_owned(),
        "N" => "1".to_owned(),
        "DIGEST" => format!("sha256:{}", "a".repeat(64)),
        word => {
            let word = word.replace('…', "x").replace("...", "x");
            let mut parts = word.split('$');
            let start = parts.next().unwrap_or_default().to_owned();
            // Variables of the shell.
            parts.fold(start, |filled, part| {
                let name = |character: char| character.is_ascii_alphanumeric() || character == '_';
                filled + "x" + part.trim_start_matches(name)
            })
        }
    }
}

#[test]
fn every_command_in_the_documents_is_one_of_this_program() {
    let (mut count, mut wrong) = (0, Vec::new());
    for path in documents().iter().filter(|path| !path.ends_with("cli.md")) {
        let text = std::fs::read_to_string(path).unwrap();
        for line in code(&text) {
            for words in commands(&line) {
                count += 1;
                let words = words.iter().map(|word| filled_in(word));
                let arguments = std::iter::once("soci".to_owned()).chain(words);
                if let Err(error) = Cli::try_parse_from(arguments)
                    && error.use_stderr()
                {
                    let name = path.file_name().unwrap_or_default().display();
                    wrong.push(format!("{name}: {line}\n  {:?}", error.kind()));
                }
            }
        }
    }
    assert!(count > 20, "only {count} commands were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// containerd 2.x copies a whole image for a user namespace if the line is missing.
#[test]
fn every_example_of_containerds_configuration_has_the_capabilities() {
    let (mut count, mut wrong) = (0, Vec::new());
    for path in documents() {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (at, _) in (0..)
            .zip(&lines)
            .filter(|(_, line)| **line == "[proxy_plugins.soci]")
        {
            count += 1;
            let table = lines[at + 1..].iter();
            let mut table = table.take_while(|line| !line.starts_with(['[', '`']));
            let whole = "capabilities = [\"remap-ids\", \"multi-remap-ids\"]";
            if !table.any(|line| line.starts_with(whole)) {
                wrong.push(format!("{}:{}", path.display(), at + 1));
            }
        }
    }
    assert!(count >= 5, "only {count} examples: are they still read?");
    assert!(wrong.is_empty(), "without capabilities: {wrong:?}");
}
