//! `soci`: makes images lazily loadable, pulls them lazily, and looks into them.

#![forbid(unsafe_code)]

mod age;
mod artifact_records;
mod artifact_store;
mod cli;
#[cfg(test)]
mod cli_page;
mod commands;
mod container;
mod containerd;
#[cfg(test)]
mod document_commands;
mod duration;
mod filling;
mod global;
mod go_flags;
mod index_args;
mod interrupt;
#[cfg(test)]
mod manifest_commands;
mod manual_pages;
mod output;
mod profiles;
mod progress;
mod pull;
mod registry_args;
mod remote;
mod snapshotter_args;
mod style;
mod table;
mod usage_error;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            match error.downcast_ref::<filling::ExitError>() {
                Some(error) => ExitCode::from(error.code),
                None => ExitCode::FAILURE,
            }
        }
    }
}
