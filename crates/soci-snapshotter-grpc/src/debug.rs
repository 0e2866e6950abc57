//! The debug endpoints: the state of the daemon for troubleshooting, as JSON. They show image names, and no
//! credentials.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use soci_fetch::{PriorityStats, SpanFetcher};
use soci_status::Sources;

use crate::process_facts::ProcessFacts;

const LIST: &str = "\
/debug/vars    process, memory, fetcher, layer store, counts
/debug/status  what `soci status --json` prints
";

/// The subsystems that are shown.
#[derive(Clone)]
pub(crate) struct Debug {
    pub(crate) sources: Sources,
    pub(crate) fetcher: Arc<SpanFetcher>,
    pub(crate) pool: soci_fuse::Pool,
}

/// Serves `/debug/…`.
pub(crate) fn router(debug: Debug) -> Router {
    Router::new()
        .route("/debug/", get(|| async { LIST }))
        .route("/debug/vars", get(vars))
        .route("/debug/status", get(status))
        .with_state(debug)
}

async fn status(State(debug): State<Debug>) -> Response {
    match debug.sources.collect().await {
        Ok(status) => Json(status).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

async fn vars(State(debug): State<Debug>) -> Response {
    let status = match debug.sources.collect().await {
        Ok(status) => status,
        Err(error) => {
            return (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response();
        }
    };
    let stats = debug.fetcher.stats();
    let process = soci_task::run(ProcessFacts::now).await.ok();
    Json(json!({
        "daemon": status.daemon,
        "process": process,
        "store": status.store,
        "layers": status.counts,
        "images": status.images.len(),
        "fuseConnections": debug.pool.connections(),
        "fetch": {
            "demand": of_priority(&stats.demand),
            "readahead": of_priority(&stats.readahead),
            "profile": of_priority(&stats.profile),
            "background": of_priority(&stats.background),
            "queuedSpans": stats.queued_spans,
            "requestsInFlight": stats.requests_in_flight,
            "requestLimit": stats.request_limit,
            "origins": stats.origins,
            "originsFailing": stats.origins_failing,
            "memoryBytes": stats.memory_in_use,
            "memoryPeakBytes": stats.memory_peak,
            "spansVerified": stats.spans_verified,
            "verificationFailures": stats.verification_failures,
            "failedSpans": stats.spans_failed,
            "storeFailures": stats.store_failures,
            "backgroundLayers": stats.background_layers,
            "backgroundDropped": stats.background_dropped,
        },
    }))
    .into_response()
}

fn of_priority(stats: &PriorityStats) -> Value {
    json!({"requests": stats.requests, "bytes": stats.bytes, "spans": stats.spans})
}
