//! A reverse proxy in front of a registry that throttles, counts, demands credentials and breaks
//! things on purpose.
//!
//! It relays HTTP/1.1 on its own sockets instead of through a server library: faults such as a
//! reset in the middle of a body or a body shorter than announced are what libraries prevent.

mod auth;
mod fault;
mod relay;
mod request_body;
mod response;
mod stats;
mod throttle;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

pub use auth::Auth;
pub use fault::{Fault, Rule};
pub use stats::{PathStats, RequestRecord, Stats};
pub use throttle::Throttle;

use auth::AuthState;
use fault::Rules;
use stats::Counter;
use throttle::Pacer;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) upstream: SocketAddr,
    pub(crate) address: SocketAddr,
    pub(crate) throttle: Mutex<Throttle>,
    /// The rate that all responses share.
    pub(crate) total: Mutex<Pacer>,
    pub(crate) rules: Mutex<Rules>,
    pub(crate) auth: Mutex<AuthState>,
    pub(crate) counter: Counter,
}

/// A proxy on a free port of 127.0.0.1, with threads of its own; it ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Starts a proxy in front of `upstream`: unthrottled, without faults and credentials.
    ///
    /// # Errors
    /// When no port is to be had.
    pub fn start(upstream: SocketAddr) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("testkit-proxy")
            .enable_all()
            .build()
            .context("start the proxy's threads")?;
        let listener = runtime
            .block_on(TcpListener::bind(("127.0.0.1", 0)))
            .context("listen on a free port")?;
        let shared = Arc::new(Shared {
            upstream,
            address: listener.local_addr()?,
            throttle: Mutex::new(Throttle::default()),
            total: Mutex::new(Pacer::new()),
            rules: Mutex::default(),
            auth: Mutex::default(),
            counter: Counter::default(),
        });
        runtime.spawn(relay::accept(listener, Arc::clone(&shared)));
        Ok(Self {
            shared,
            runtime: Some(runtime),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// The name of an image seen through the proxy.
    #[must_use]
    pub fn reference(&self, name_and_tag: &str) -> String {
        format!("{}/{name_and_tag}", self.address())
    }

    /// Sets the speed, for responses that begin from now on.
    pub fn throttle(&self, throttle: Throttle) {
        *self.shared.throttle.lock() = throttle;
    }

    /// Adds a fault. The first rule that matches a request and is not used up applies.
    pub fn inject(&self, rule: Rule) {
        self.shared.rules.lock().add(rule);
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.shared.rules.lock().clear();
    }

    /// How often faults were injected so far.
    #[must_use]
    pub fn faults_injected(&self) -> u64 {
        self.shared.rules.lock().injected()
    }

    /// Demands credentials from now on, or no longer. Tokens that were given out become invalid.
    pub fn demand(&self, auth: Auth) {
        self.shared.auth.lock().demand(auth);
    }

    /// Makes every token that was given out so far invalid.
    pub fn revoke_tokens(&self) {
        self.shared.auth.lock().revoke();
    }

    /// What went through so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.counter.snapshot()
    }

    /// Starts counting afresh.
    pub fn reset_stats(&self) {
        self.shared.counter.reset();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for tasks is not allowed in async tests, and nobody needs their results.
            runtime.shutdown_background();
        }
    }
}
