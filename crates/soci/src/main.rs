//! `soci`: makes images lazily loadable, and pulls them lazily.

#![forbid(unsafe_code)]

mod cli;
mod commands;
mod duration;
mod output;
mod progress;
mod pull;
mod registry_args;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
