//! The snapshotter daemon: flags, then the log, then one of serving, showing, ending.

#![deny(unsafe_code)]

mod args;
mod calls;
mod control;
mod credentials;
mod debug;
mod descriptor_store;
mod holding;
mod http_socket;
mod images;
mod listen;
mod manual_pages;
mod memory;
mod metrics;
mod observe;
mod old_root;
mod process_facts;
mod proving;
mod root;
mod serve;
mod settings;
mod show;
mod signals;
mod status_sources;
mod supervise;
mod upgrade;
mod vault;
mod wiring;

use std::process::ExitCode;

use args::{Args, Command};

/// The subcommand that becomes a holder.
const HOLDER_ARGUMENT: &str = "holder-process";
/// The subcommand that is a server.
const SERVER_ARGUMENT: &str = "server-process";

fn main() -> ExitCode {
    if let Some(root) = soci_holder::root_of_holder() {
        return match soci_holder::run(&root) {
            Ok(()) => ExitCode::SUCCESS,
            // Whoever started it sees that it does not answer, and says so.
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
    memory::return_large_blocks_at_once();
    soci_telemetry::init(args.log_level);
    soci_telemetry::log_panics();
    let done = match &args.command {
        _ if args.version => show::version().map(|()| ExitCode::SUCCESS),
        Some(Command::Config { show }) => {
            show::configuration(*show, &args).map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Upgrade) => upgrade::run(&args.root).map(|()| ExitCode::SUCCESS),
        Some(Command::Man { folder }) => manual_pages::write(folder).map(|()| ExitCode::SUCCESS),
        Some(Command::ServerProcess) => serve::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::HolderProcess) => Err(soci_holder::become_holder().into()),
        None => supervise::run(&args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            soci_telemetry::fatal("soci-snapshotter-grpc cannot go on", error.as_ref());
            ExitCode::FAILURE
        }
    }
}
