//! What the schedule returns: results, requests, and effects for the driver.

use std::ops::Range;
use std::sync::Arc;

use tokio::time::Instant;

use crate::ReadError;
use crate::priority::Priority;
use crate::read_error::Cause;
use crate::span_key::{OriginId, SpanKey};

/// Number of a request within one schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestId(pub(super) u64);

/// A ranged request for neighbouring spans of a layer.
#[derive(Debug, Clone)]
pub(crate) struct Request<L> {
    pub(crate) id: RequestId,
    pub(crate) layer: L,
    pub(crate) origin: OriginId,
    pub(crate) priority: Priority,
    pub(crate) spans: Range<u32>,
    /// When it ends unless bytes arrive, retries included.
    pub(crate) deadline: Instant,
}

/// Result of wanting a span.
#[derive(Debug)]
pub(crate) enum WantResult {
    /// The span is stored.
    Stored,
    /// The span is being fetched.
    Pending,
    /// The span failed a moment ago, or its layer is closed.
    Failed(ReadError),
}

/// How a request ended.
pub(crate) enum Outcome<'a> {
    /// Everything has arrived, or the request was cut off.
    Completed,
    /// Spans are missing.
    Broken {
        /// Whether another request may succeed.
        transient: bool,
        /// What the end says about the origin.
        health: Health,
        /// The error for the readers of a span.
        error: &'a dyn Fn(u32) -> ReadError,
    },
}

/// What a broken request says about its origin.
#[derive(Debug, Clone)]
pub(crate) enum Health {
    /// It answered, with a refusal.
    Answering,
    /// It did not answer, failed, or was too slow.
    Failing(Cause),
    /// Nothing: the request ended for another reason.
    Unknown,
}

/// An action of the driver.
#[derive(Debug)]
pub(crate) enum Effect<L, W> {
    /// Make this request.
    Start(Request<L>),
    /// Abort the task of this request.
    Abort(RequestId),
    /// A reader waits for this span now, which has arrived.
    Hasten(SpanKey),
    /// Answer readers with an error and report it.
    Fail(FailedSpan<L, W>),
    /// Answer readers of a layer that was closed.
    AnswerClosed(Vec<W>),
    /// Drop these readers, which are gone.
    Forget(Vec<W>),
    /// Report that the circuit of an origin opened or closed.
    Circuit(CircuitChange),
}

/// A change of a circuit.
#[derive(Debug)]
pub(crate) struct CircuitChange {
    pub(crate) origin: Arc<str>,
    /// The number of failures in a row and the last error if it opened; `None` if it closed.
    pub(crate) opened: Option<(u32, Cause)>,
}

/// A span that cannot be had.
#[derive(Debug)]
pub(crate) struct FailedSpan<L, W> {
    pub(crate) layer: L,
    pub(crate) priority: Priority,
    /// Whether the failure becomes the error of the layer.
    pub(crate) reported: bool,
    pub(crate) waiters: Vec<W>,
    pub(crate) error: ReadError,
}
