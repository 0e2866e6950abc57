//! A container without containerd: what an image says about how it runs, and runc.

mod accounts;
mod runc;
mod spec;

pub(crate) use runc::{Ended, Runc};
pub(crate) use spec::{Process, runtime_spec};
