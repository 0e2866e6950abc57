//! The commands, one module each.

pub(crate) mod abort_mounts;
pub(crate) mod cat;
pub(crate) mod check;
pub(crate) mod completion;
pub(crate) mod convert;
pub(crate) mod create;
pub(crate) mod gc;
pub(crate) mod index;
pub(crate) mod index_builder;
pub(crate) mod ls;
pub(crate) mod man;
pub(crate) mod mount;
pub(crate) mod node;
pub(crate) mod prefetch;
pub(crate) mod profile;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod rebuild_db;
pub(crate) mod status;
pub(crate) mod wait;
pub(crate) mod ztoc;
