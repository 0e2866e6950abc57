//! The interface of a file system: it answers requests.

use crate::reply::Reply;
use crate::request::Request;

/// Answers the requests of one connection, except INIT, FORGET, INTERRUPT and DESTROY.
pub trait FileSystem: Send + Sync + 'static {
    /// Answers one request through `reply`, immediately or later. Called on all worker threads
    /// concurrently; it must not block, since a few threads serve all connections.
    fn handle(&self, request: &Request<'_>, reply: Reply);
}
