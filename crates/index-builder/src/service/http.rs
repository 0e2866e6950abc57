//! The addresses of the service.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde::Serialize;

use super::{Pages, Service, page};
use crate::event::{self, Reported};
use crate::{Added, Counts, Decision, Job, Push, QueueError};

/// Largest event in bytes.
const MAX_EVENT: usize = 1 << 20;
/// Longest time for a request's body.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Jobs on the status page.
const SHOWN: usize = 100;

/// The response to an event.
#[derive(Debug, Default, Serialize)]
struct Taken {
    /// Jobs that were queued.
    queued: Vec<u64>,
    /// Jobs that were there already for the same push.
    duplicates: Vec<u64>,
    /// Why the rest of the event is not acted on.
    ignored: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Problem<'a> {
    error: &'a str,
}

/// The content of `/status.json`.
#[derive(Debug, Serialize)]
struct StatusReport {
    counts: Counts,
    jobs: Vec<Job>,
}

pub(super) fn router(service: Arc<Service>, pages: Pages) -> Router {
    let mut router = Router::new().route("/healthz", get(health));
    if pages != Pages::Status {
        router = router.route("/events", post(take));
    }
    if pages != Pages::Events {
        router = router
            .route("/", get(status_page))
            .route("/status.json", get(status_json))
            .route("/metrics", get(metrics));
    }
    router.with_state(service)
}

async fn take(State(service): State<Arc<Service>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = match body_of(body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    match taken(&service, &parts.headers, &body).await {
        Ok(taken) => json(StatusCode::ACCEPTED, &taken),
        Err((status, error)) => problem(status, &error),
    }
}

async fn body_of(body: Body) -> Result<axum::body::Bytes, Response> {
    match tokio::time::timeout(BODY_TIME, to_bytes(body, MAX_EVENT)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => Err(problem(
            StatusCode::PAYLOAD_TOO_LARGE,
            "cannot read the event: it is larger than 1 MiB, or the connection broke",
        )),
        Err(_) => Err(problem(
            StatusCode::REQUEST_TIMEOUT,
            "cannot read the event: it did not arrive in time",
        )),
    }
}

async fn taken(
    service: &Service,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Taken, (StatusCode, String)> {
    if let Some(secret) = &service.secret
        && !secret.admits(headers, body)
    {
        service.metrics.pushes("forged", 1);
        tracing::warn!("an event without the right secret was refused");
        return Err((
            StatusCode::UNAUTHORIZED,
            "the event is neither signed with the shared secret (X-Soci-Signature-256: sha256=…) nor does it \
             carry it (Authorization: Bearer …)"
                .to_owned(),
        ));
    }
    let reported = event::parse(body).map_err(|error| {
        service.metrics.pushes("malformed", 1);
        tracing::warn!(%error, "malformed event");
        (StatusCode::BAD_REQUEST, error.to_string())
    })?;
    let mut taken = Taken::default();
    let mut pushes: Vec<Push> = Vec::new();
    for one in reported {
        let ignored = match one {
            Reported::Push(push) => match service.policy.decide(push) {
                Decision::Index(push) => {
                    pushes.push(push);
                    continue;
                }
                Decision::Ignore(why) => why,
            },
            Reported::Other(what) => what,
        };
        tracing::info!(reason = ignored, "event ignored");
        taken.ignored.push(ignored);
    }
    service.metrics.pushes("ignored", taken.ignored.len());
    if pushes.is_empty() {
        return Ok(taken);
    }
    let (queue, names) = (service.queue.clone(), pushes.clone());
    let added = soci_task::blocking(move || queue.add(&pushes)).await;
    let added = added.map_err(|error| {
        service.metrics.pushes("failed", names.len());
        let error = soci_errors::chain(&error);
        tracing::error!(error, "cannot queue an event");
        (StatusCode::SERVICE_UNAVAILABLE, error)
    })?;
    for (push, added) in names.iter().zip(added) {
        match added {
            Added::New(id) => {
                tracing::info!(job = id, image = %push, "queued");
                taken.queued.push(id);
            }
            Added::Duplicate(id) => {
                tracing::info!(job = id, image = %push, "known already");
                taken.duplicates.push(id);
            }
        }
    }
    service.metrics.pushes("queued", taken.queued.len());
    service.metrics.pushes("duplicate", taken.duplicates.len());
    service.pool.wake();
    Ok(taken)
}

/// Healthy is what can take events: the queue can be read.
async fn health(State(service): State<Arc<Service>>) -> Response {
    let queue = service.queue.clone();
    match soci_task::blocking(move || queue.list(None, 1)).await {
        Ok(_) => "ok\n".into_response(),
        Err(error) => trouble(&error),
    }
}

async fn metrics(State(service): State<Arc<Service>>) -> Response {
    let queue = service.queue.clone();
    let counts = match soci_task::blocking(move || queue.counts()).await {
        Ok(counts) => counts,
        Err(error) => return trouble(&error),
    };
    match service.metrics.text(&counts) {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

async fn status_json(State(service): State<Arc<Service>>) -> Response {
    match report(&service).await {
        Ok(report) => json(StatusCode::OK, &report),
        Err(error) => trouble(&error),
    }
}

async fn status_page(State(service): State<Arc<Service>>) -> Response {
    match report(&service).await {
        Ok(report) => (
            [
                (CONTENT_TYPE, "text/html; charset=utf-8"),
                (CACHE_CONTROL, "no-store"),
                // The names in it come from outside: nothing of them may run.
                (
                    CONTENT_SECURITY_POLICY,
                    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
                ),
            ],
            page::render(&report.counts, &report.jobs),
        )
            .into_response(),
        Err(error) => trouble(&error),
    }
}

async fn report(service: &Service) -> Result<StatusReport, QueueError> {
    let queue = service.queue.clone();
    soci_task::blocking(move || {
        Ok(StatusReport {
            counts: queue.counts()?,
            jobs: queue.list(None, SHOWN)?,
        })
    })
    .await
}

fn trouble(error: &QueueError) -> Response {
    problem(StatusCode::SERVICE_UNAVAILABLE, &soci_errors::chain(error))
}

fn problem(status: StatusCode, error: &str) -> Response {
    json(status, &Problem { error })
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => (status, [(CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
