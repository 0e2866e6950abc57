//! Counts the calls in flight, so that the daemon ends when the last one is answered and does not
//! wait for clients that keep idle connections.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Frame, SizeHint};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::{Layer, Service};

/// Time for the last bytes of a response to reach the socket after its call has ended.
const FLUSH: Duration = Duration::from_millis(200);

/// The calls in flight of a server. Clones share one count.
#[derive(Debug, Clone, Default)]
pub(crate) struct InFlightCalls(TaskTracker);

impl InFlightCalls {
    /// Returns when no call is in flight and the responses are sent. To be called when no new call can come.
    pub(crate) async fn answered(&self) {
        self.0.close();
        self.0.wait().await;
        tokio::time::sleep(FLUSH).await;
    }
}

impl<S> Layer<S> for InFlightCalls {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            calls: self.clone(),
        }
    }
}

/// A service whose calls are counted, from the request to the end of the response's body.
#[derive(Debug, Clone)]
pub(crate) struct Counted<S> {
    inner: S,
    calls: InFlightCalls,
}

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

type CallFuture<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S, R> Service<http::Request<R>> for Counted<S>
where
    S: Service<http::Request<R>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = CallFuture<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<R>) -> Self::Future {
        let token = self.calls.0.token();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(answer.map(|body| {
                Body::new(CountedBody {
                    body,
                    _token: token,
                })
            }))
        })
    }
}

struct CountedBody {
    body: Body,
    _token: TaskTrackerToken,
}

impl http_body::Body for CountedBody {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_counts_until_its_answers_body_is_gone() {
        let calls = InFlightCalls::default();
        let service = calls.layer(tower::service_fn(|_: http::Request<()>| async {
            let body = Body::new("not empty".to_owned());
            Ok::<_, std::convert::Infallible>(http::Response::new(body))
        }));
        let answer = service.oneshot(http::Request::new(())).await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_secs(60), calls.answered());
        assert!(waiting.await.is_err(), "the body has not been sent yet");
        drop(answer);
        calls.answered().await;
    }
}
