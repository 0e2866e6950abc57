//! What a file system is to this crate: something that answers requests.

use crate::reply::Reply;
use crate::request::Request;

/// Answers the requests of one connection. INIT, FORGET, INTERRUPT and DESTROY never get here.
pub trait FileSystem: Send + Sync + 'static {
    /// Answers one request through `reply`, at once or later. Called on any worker thread, many
    /// at a time; it must not block, since a few threads serve all connections.
    fn handle(&self, request: &Request<'_>, reply: Reply);
}
