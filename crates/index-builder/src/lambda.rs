//! AWS Lambda: the events of EventBridge one after the other, without a queue of ours. Lambda calls
//! again when a call fails, and has a dead-letter queue for those that fail for good.

use std::sync::Arc;

use lambda_runtime::{LambdaEvent, service_fn};
use serde::Serialize;
use serde_json::Value;

use crate::event::{self, Reported};
use crate::indexer::index_in_order;
use crate::{Decision, Failure, ImageIndexer, Outcome, PushPolicy};

/// What a call returns.
#[derive(Debug, Default, Serialize)]
struct Report {
    indexed: Vec<Outcome>,
    ignored: Vec<String>,
}

/// The variables that Lambda sets, without which its crate would panic.
const VARIABLES: [&str; 4] = [
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_VERSION",
];

/// Serves calls until Lambda ends the process.
///
/// # Errors
/// The process was not started by Lambda, or its interface cannot be reached.
pub async fn serve(
    policy: PushPolicy,
    indexer: Arc<dyn ImageIndexer>,
) -> Result<(), lambda_runtime::Error> {
    if let Some(missing) = VARIABLES
        .iter()
        .find(|name| std::env::var_os(name).is_none())
    {
        return Err(format!(
            "cannot reach AWS Lambda: {missing} is not set; run this as the program of a function"
        )
        .into());
    }
    let policy = Arc::new(policy);
    let handler = service_fn(move |call: LambdaEvent<Value>| {
        let (policy, indexer) = (Arc::clone(&policy), Arc::clone(&indexer));
        async move { handle(call, &policy, &*indexer).await }
    });
    lambda_runtime::run(handler).await
}

async fn handle(
    call: LambdaEvent<Value>,
    policy: &PushPolicy,
    indexer: &dyn ImageIndexer,
) -> Result<Report, lambda_runtime::Error> {
    let (event, context) = call.into_parts();
    let request = context.request_id.as_str();
    let mut report = Report::default();
    for reported in event::parse(event.to_string().as_bytes())? {
        let push = match reported {
            Reported::Push(push) => match policy.decide(push) {
                Decision::Index(push) => push,
                Decision::Ignore(reason) => {
                    tracing::info!(request, reason, "event ignored");
                    report.ignored.push(reason);
                    continue;
                }
            },
            Reported::Other(reason) => {
                tracing::info!(request, reason, "event ignored");
                report.ignored.push(reason);
                continue;
            }
        };
        tracing::info!(request, image = %push, "indexing");
        match index_in_order(indexer, &push).await {
            Ok(outcome) => {
                tracing::info!(request, image = %push, indexed = outcome.image.as_deref(), bytes = outcome.bytes, "indexed");
                report.indexed.push(outcome);
            }
            Err(Failure::NotWanted(reason)) => {
                tracing::info!(request, image = %push, reason, "not to be indexed");
                report.ignored.push(reason);
            }
            Err(Failure::Permanent(reason) | Failure::Transient(reason)) => {
                tracing::error!(request, image = %push, error = reason, "indexing failed");
                return Err(format!("cannot index {push}: {reason}").into());
            }
        }
    }
    Ok(report)
}
