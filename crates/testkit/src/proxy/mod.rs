//! A reverse proxy in front of a registry that throttles, counts, demands credentials and injects faults.
//!
//! It relays HTTP/1.1 on its own sockets instead of through a server library: faults such as a
//! reset in the middle of a body or a body shorter than announced are what libraries prevent.

mod auth;
mod fault;
mod relay;
mod request_body;
mod response;
mod state;
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

use state::ProxyState;
use stats::Counter;
use throttle::Pacer;

/// A proxy on a free port of 127.0.0.1, with threads of its own; it ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    state: Arc<ProxyState>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Starts a proxy in front of `upstream`: unthrottled, without faults and credentials.
    ///
    /// # Errors
    /// When no port is free.
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
        let state = Arc::new(ProxyState {
            upstream,
            address: listener.local_addr()?,
            throttle: Mutex::new(Throttle::default()),
            total: Mutex::new(Pacer::new()),
            rules: Mutex::default(),
            auth: Mutex::default(),
            counter: Counter::default(),
        });
        runtime.spawn(relay::accept(listener, Arc::clone(&state)));
        Ok(Self {
            state,
            runtime: Some(runtime),
        })
    }

    /// The address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.state.address
    }

    /// The name of an image seen through the proxy.
    #[must_use]
    pub fn reference(&self, name_and_tag: &str) -> String {
        format!("{}/{name_and_tag}", self.address())
    }

    /// Sets the speed, for responses that begin from now on.
    pub fn throttle(&self, throttle: Throttle) {
        *self.state.throttle.lock() = throttle;
    }

    /// Adds a fault. The first rule that matches a request and is not used up applies.
    pub fn inject(&self, rule: Rule) {
        self.state.rules.lock().add(rule);
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.state.rules.lock().clear();
    }

    /// How often faults were injected so far.
    #[must_use]
    pub fn faults_injected(&self) -> u64 {
        self.state.rules.lock().injected()
    }

    /// Sets which credentials are demanded. Tokens issued before become invalid.
    pub fn demand(&self, auth: Auth) {
        self.state.auth.lock().demand(auth);
    }

    /// Invalidates every token issued so far.
    pub fn revoke_tokens(&self) {
        self.state.auth.lock().revoke();
    }

    /// Counts of what it relayed so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.state.counter.snapshot()
    }

    /// Resets the counts.
    pub fn reset_stats(&self) {
        self.state.counter.reset();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for tasks is not allowed in async tests, and their results are not needed.
            runtime.shutdown_background();
        }
    }
}
