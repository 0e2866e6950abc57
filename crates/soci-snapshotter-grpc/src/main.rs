//! The snapshotter daemon: flags, then the log, then one of serving, showing, ending.

#![deny(unsafe_code)]

mod args;
mod calls;
mod debug;
mod http_socket;
mod images;
mod listen;
mod memory;
mod metrics;
mod observe;
mod process_facts;
mod serve;
mod settings;
mod show;
mod signals;
mod status_sources;
mod wiring;

use std::process::ExitCode;

use args::{Args, Command};

fn main() -> ExitCode {
    let args = match Args::read() {
        Ok(args) => args,
        Err(usage) => {
            let _ = usage.print();
            return ExitCode::from(u8::from(usage.use_stderr()));
        }
    };
    memory::return_large_blocks_at_once();
    telemetry::init(args.log_level);
    telemetry::log_panics();
    let done = match args.command {
        _ if args.version => show::version(),
        Some(Command::Config { show }) => show::configuration(show, &args),
        None => serve::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            telemetry::fatal("soci-snapshotter-grpc cannot go on", error.as_ref());
            ExitCode::FAILURE
        }
    }
}
