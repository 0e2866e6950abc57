//! The beginning and the end of the programs.

use std::process::ExitCode;

use anyhow::Result;

/// Runs the work of the program `name`. A signal ends what it started, then the program; errors are printed on
/// standard error.
#[expect(
    clippy::print_stderr,
    clippy::exit,
    reason = "the whole of a program for people"
)]
pub fn run(name: &'static str, work: impl FnOnce() -> Result<()>) -> ExitCode {
    let ended = soci_testkit::clean_up_at_signals(move || {
        eprintln!("{name}: interrupted; everything it started is ended and removed");
        std::process::exit(1);
    });
    match ended.and_then(|()| work()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
