//! One file per command.

pub(crate) mod completion;
pub(crate) mod convert;
pub(crate) mod pull;
pub(crate) mod status;
