//! Flags in the forms that Go programs also accept: `-name` with one dash, and `--switch=true`.
//! Scripts written for soci use them.

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::Command;

/// The long flags of a command and all below it.
struct Flags {
    all: BTreeSet<String>,
    /// Those that take no value.
    switches: BTreeSet<String>,
}

impl Flags {
    fn of(command: &Command) -> Self {
        let mut flags = Self {
            all: BTreeSet::new(),
            switches: BTreeSet::new(),
        };
        flags.collect(command);
        flags
    }

    fn collect(&mut self, command: &Command) {
        for argument in command.get_arguments() {
            let Some(name) = argument.get_long() else {
                continue;
            };
            self.all.insert(name.to_owned());
            if !argument.get_action().takes_values() {
                self.switches.insert(name.to_owned());
            }
        }
        for below in command.get_subcommands() {
            self.collect(below);
        }
    }

    /// The argument in the form that clap reads; `None`: it says nothing (`--quiet=false`).
    fn normal(&self, argument: &str) -> Option<String> {
        let bare = argument.strip_prefix("--").or_else(|| {
            let name = argument.strip_prefix('-')?;
            let known = name.split('=').next().unwrap_or_default();
            (known.len() > 1 && self.all.contains(known)).then_some(name)
        });
        let Some(bare) = bare else {
            return Some(argument.to_owned());
        };
        if let Some((name, value)) = bare.split_once('=')
            && self.switches.contains(name)
        {
            return match value {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(format!("--{name}")),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => None,
                _ => Some(argument.to_owned()),
            };
        }
        Some(format!("--{bare}"))
    }
}

/// The arguments (without the program) in the forms that `command` reads.
pub(crate) fn normalized(
    command: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Vec<OsString> {
    let mut flags = None;
    let mut out = Vec::new();
    let mut only_operands = false;
    for argument in arguments {
        let text = argument.to_str().filter(|text| text.starts_with('-'));
        match text {
            Some(text) if !only_operands && text.len() > 2 => {
                let flags = flags.get_or_insert_with(|| Flags::of(command));
                out.extend(flags.normal(text).map(OsString::from));
            }
            text => {
                only_operands |= text == Some("--");
                out.push(argument);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn flags_of_go_programs_are_understood() {
        let read = |line: &str| {
            let words = line.split(' ').map(OsString::from);
            let normal = normalized(&crate::cli::Cli::command(), words);
            normal.join(&OsString::from(" ")).into_string().unwrap()
        };
        for (given, expected) in [
            (
                "-namespace n create -all-platforms r",
                "--namespace n create --all-platforms r",
            ),
            (
                "push --quiet=false --plain-http=true r",
                "push --plain-http r",
            ),
            ("push --quiet=maybe r", "push --quiet=maybe r"),
            (
                "push -platform=linux/amd64 r",
                "push --platform=linux/amd64 r",
            ),
            ("push -plinux/amd64 -qk r", "push -plinux/amd64 -qk r"),
            ("push -- -quiet", "push -- -quiet"),
        ] {
            assert_eq!(read(given), expected);
        }
    }
}
