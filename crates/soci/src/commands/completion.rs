//! `soci completion`: shell completions on stdout.

use clap::{Args, Command};
use clap_complete::Shell;

use crate::output;

/// Print the completion script of a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  soci completion bash > /etc/bash_completion.d/soci")]
pub(crate) struct Completion {
    /// The shell
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

impl Completion {
    /// Prints the script for the command line `soci`.
    pub(crate) fn run(&self, mut soci: Command) -> anyhow::Result<()> {
        let shell = match self.shell.as_str() {
            "zsh" => Shell::Zsh,
            "fish" => Shell::Fish,
            _ => Shell::Bash,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut soci, "soci", &mut script);
        output::own_text(String::from_utf8_lossy(&script));
        Ok(())
    }
}
