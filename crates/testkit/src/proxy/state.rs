//! The state that the connections of a proxy share.

use std::net::SocketAddr;

use parking_lot::Mutex;

use super::auth::AuthState;
use super::fault::Rules;
use super::stats::Counter;
use super::throttle::{Pacer, Throttle};

/// The state of a proxy, shared by its connections.
#[derive(Debug)]
pub(crate) struct ProxyState {
    pub(crate) upstream: SocketAddr,
    pub(crate) address: SocketAddr,
    pub(crate) throttle: Mutex<Throttle>,
    /// The rate that all responses share.
    pub(crate) total: Mutex<Pacer>,
    pub(crate) rules: Mutex<Rules>,
    pub(crate) auth: Mutex<AuthState>,
    pub(crate) counter: Counter,
}
