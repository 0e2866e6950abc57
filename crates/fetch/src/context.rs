//! What requests, span work and reads share: the schedule, memory, counters and the log limit.

use std::pin::pin;
use std::sync::Arc;

use futures::FutureExt as _;
use soci_telemetry::LogLimit;
use tokio::time::Instant;

use crate::FetchConfig;
use crate::activity::Activity;
use crate::budget::{Budget, Permit};
use crate::pending_read::PendingRead;
use crate::priority::Priority;
use crate::schedule::{Conditions, Schedule, ScheduleConfig};
use crate::served_layer::ServedLayer;
use crate::span_key::{LayerId, OriginId, SpanKey};
use crate::stats::Counters;
use crate::sync::Mutex;
use crate::unsaved::UnsavedSpans;

/// The schedule of served layers and their readers.
pub(crate) type LayerSchedule = Schedule<Arc<ServedLayer>, Arc<PendingRead>>;

/// The state that requests, span work and reads share.
pub(crate) struct Context {
    pub(crate) config: FetchConfig,
    pub(crate) schedule: Mutex<LayerSchedule>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) unsaved: UnsavedSpans,
    pub(crate) activity: Activity,
    pub(crate) counters: Counters,
    /// Limit of all log lines about spans that cannot be fetched or stored.
    pub(crate) log_limit: LogLimit,
}

impl Context {
    pub(crate) fn new(config: FetchConfig) -> Self {
        let schedule = ScheduleConfig {
            max_inflight: config.max_inflight,
            max_request_bytes: config.max_request_bytes,
            read_timeout: config.read_timeout,
            negative_backoff: config.negative_backoff,
        };
        Self {
            schedule: Mutex::new(Schedule::new(schedule)),
            budget: Budget::new(config.memory_budget),
            unsaved: UnsavedSpans::new(config.memory_budget / 4),
            activity: Activity::new(config.background.silence_period),
            counters: Counters::default(),
            log_limit: LogLimit::default(),
            config,
        }
    }

    pub(crate) fn conditions(&self) -> Conditions {
        Conditions {
            now: Instant::now(),
            background: self.activity.background_requests(),
        }
    }

    /// Waits for memory for a span of an origin. Spans that are kept only because they could not be
    /// stored make room.
    pub(crate) async fn memory(
        &self,
        bytes: u64,
        priority: Priority,
        key: SpanKey,
        origin: OriginId,
    ) -> Permit {
        let mut permit = pin!(self.budget.acquire(bytes, priority, key, origin));
        if let Some(permit) = permit.as_mut().now_or_never() {
            return permit;
        }
        // It is queued now: spans that are kept from now on find a waiter and are dropped.
        self.unsaved.clear();
        // A reader may have come just before; later ones raise the priority themselves.
        let raised = self.schedule.lock().priority(key);
        if let Some(raised) = raised.filter(|raised| *raised < priority) {
            self.budget.raise_priority(key, raised);
        }
        permit.await
    }

    /// Raises the priority of waits for memory to that of their spans.
    pub(crate) fn raise_memory_priority(&self, layer: LayerId) {
        for key in self.budget.waiting_spans(layer) {
            let priority = self.schedule.lock().priority(key);
            if let Some(priority) = priority {
                self.budget.raise_priority(key, priority);
            }
        }
    }
}
