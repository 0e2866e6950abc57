//! Tests of walking, measuring and removing trees.

#![expect(
    clippy::unwrap_used,
    reason = "clippy does not know what helpers of tests are for"
)]

mod measure;
mod remove;
mod tree;
mod walk;
