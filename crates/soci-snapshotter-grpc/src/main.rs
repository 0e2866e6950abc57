//! The snapshotter daemon: one program for its three processes, and for a few commands.

#![deny(unsafe_code)]

mod args;
mod collector;
mod control;
mod credential_memfd;
mod credentials;
mod debug;
mod descriptor_store;
mod holder_keys;
mod holder_setup;
mod http_socket;
mod images;
mod in_flight_calls;
mod listen;
mod manual_pages;
mod memory;
mod metrics;
mod observe;
mod own_process;
mod preflight;
mod process_facts;
mod root_lock;
mod serve;
mod settings;
mod show;
mod socket_owner;
mod status_sources;
mod supervise;
mod supervision;
mod upgrade;
mod v015_cleanup;
mod wiring;

use std::process::ExitCode;

use args::{Args, Role};

fn main() -> ExitCode {
    if let Some(root) = soci_holder::root_of_holder() {
        return match soci_holder::run(&root) {
            Ok(()) => ExitCode::SUCCESS,
            // The process that started it notices that it does not respond, and logs that.
            Err(_) => ExitCode::FAILURE,
        };
    }
    let args = match Args::read() {
        Ok(args) => args,
        Err(usage) => {
            let _ = usage.print();
            return ExitCode::from(u8::from(usage.use_stderr()));
        }
    };
    if let Role::PageCache = args.role() {
        // Nothing is logged: it ends with the daemon that it works for.
        return match soci_lazy::read_into_page_cache(std::io::stdin()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    memory::map_large_blocks();
    soci_telemetry::init(args.log_level);
    soci_telemetry::log_panics();
    let code = run(&args).unwrap_or_else(|error| {
        soci_telemetry::fatal(last_words(&error), error.as_ref());
        ExitCode::FAILURE
    });
    soci_telemetry::flush();
    code
}

/// The message under which the error is logged. Scripts for v0.15 look for the first one.
fn last_words(error: &anyhow::Error) -> &'static str {
    match error.downcast_ref() {
        Some(soci_config::ConfigError::Read { .. }) => "failed to open config file",
        _ => "soci-snapshotter-grpc failed",
    }
}

fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match args.role() {
        Role::Supervisor => return supervise::run(args),
        Role::Server => serve::run(args)?,
        Role::PageCache => {}
        Role::Holder => return Err(soci_holder::become_holder().into()),
        Role::PrintVersion => show::version()?,
        Role::PrintConfig(which) => show::configuration(which, args)?,
        Role::RequestUpgrade => upgrade::run(&args.root)?,
        Role::WriteManual(folder) => manual_pages::write(folder)?,
    }
    Ok(ExitCode::SUCCESS)
}
