//! When the connection of a request was made: the wait for the head of its response begins then.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tower::{Layer, Service};

tokio::task_local! {
    /// The clock of the request that this task sends.
    static CLOCK: Arc<DialClock>;
}

/// What is known of the connection of one request.
#[derive(Debug, Clone, Copy, Default)]
enum Dial {
    /// None was needed yet: one that is open may be used.
    #[default]
    None,
    Running,
    Ended(Instant),
}

/// The connection of one request.
#[derive(Debug, Default)]
pub(crate) struct DialClock(Mutex<Dial>);

impl DialClock {
    /// Drives the sending of a request whose connection this clock observes.
    pub(crate) fn observe<F: Future>(
        self: &Arc<Self>,
        sending: F,
    ) -> impl Future<Output = F::Output> {
        CLOCK.scope(Arc::clone(self), sending)
    }

    /// When the wait for a head ends that lasts `wait` once there is a connection, for which a request
    /// of `started` waits for `dial`.
    pub(crate) fn end(&self, started: Instant, dial: Duration, wait: Duration) -> Instant {
        match *self.0.lock() {
            Dial::None => started + wait,
            Dial::Running => started + dial + wait,
            Dial::Ended(at) => at + wait,
        }
    }

    fn set(&self, dial: Dial) {
        *self.0.lock() = dial;
    }
}

/// Makes a connector report to the clock of the request that it connects for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ObserveDial;

impl<S> Layer<S> for ObserveDial {
    type Service = ObservedConnector<S>;

    fn layer(&self, connector: S) -> Self::Service {
        ObservedConnector(connector)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct ObservedConnector<S>(S);

impl<S, R> Service<R> for ObservedConnector<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        // The pool connects in the task of the request, unless that has found another connection.
        let clock = CLOCK.try_with(Arc::clone).ok();
        let connecting = self.0.call(request);
        Box::pin(async move {
            if let Some(clock) = &clock {
                clock.set(Dial::Running);
            }
            let connected = connecting.await;
            if let Some(clock) = &clock {
                clock.set(Dial::Ended(Instant::now()));
            }
            connected
        })
    }
}
