//! What tests and benchmarks run against: real containerd, runc and registry of their own, a
//! throttling and fault-injecting registry proxy, and an image builder.
//!
//! Everything here needs root on Linux. Each part lives below a private temporary root and takes
//! its processes, mounts and files with it when it is dropped, also when the test panics; what a
//! killed test run left behind is swept by the next one.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "what is removed was made by the tests"
)]

mod captured_log;
mod cli;
mod containerd;
pub mod cri;
mod ctr;
pub mod fake;
mod http1;
mod https;
pub mod image;
pub mod kernel_caches;
pub mod listing;
mod local_port;
mod nginx;
pub mod process;
mod program;
pub mod proxy;
mod registry;
mod release;
mod soci;
mod stack;
mod systemd;

pub use captured_log::{CapturedLog, LogBuffer};
pub use cli::{SociCli, binary, output_of};
pub use containerd::{Containerd, ContainerdOptions, TransferOptions};
pub use cri::{Cri, CriOptions, CriPull, Pod, PodContainer};
pub use ctr::{Ctr, Run, RunOutput, Running, container_id};
pub use http1::{HttpResponse, http_request, metrics};
pub use https::Https;
pub use image::{Content, ImageBuilder, Layer, LayerCompression, OciImage};
pub use local_port::LocalPort;
pub use nginx::Nginx;
pub use process::{TestRoot, clean_up_at_signals};
pub use program::{copy_program, write_program};
pub use proxy::{Auth, Fault, Proxy, Rule, Throttle};
pub use registry::{Notify, Registry};
pub use release::Release;
pub use soci::{SociDaemon, SociDaemonOptions, daemon_program, with_key};
pub use stack::{Stack, StackOptions};
pub use systemd::Systemd;
