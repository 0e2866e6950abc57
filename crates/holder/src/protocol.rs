//! What a holder and its clients say to each other: one JSON object per packet, at most one descriptor
//! with it. Fields and kinds may be added; [`PROTOCOL`] changes when one changes its meaning.

use serde::{Deserialize, Serialize};

/// Version of the protocol.
pub(crate) const PROTOCOL: u32 = 1;

/// Largest packet in bytes. Notes are a few hundred bytes.
pub(crate) const LARGEST: usize = 128 << 10;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub(crate) enum Request {
    /// First message. A server is alone; others only look.
    Hello {
        protocol: u32,
        server: bool,
        /// Seconds without a server after which the connections are closed.
        #[serde(default)]
        abandon_after: Option<u64>,
    },
    /// Keep the descriptor that comes along, in place of an earlier one of this key.
    Put { key: String, note: String },
    /// Close the descriptor of this key.
    Remove { key: String },
    /// Send everything.
    List,
    /// Close the connections now. With `force` even if there is a server.
    Abandon { force: bool },
    /// Close everything and end.
    Quit,
}

/// What the holder answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub(crate) enum Response {
    /// To Hello.
    Welcome {
        protocol: u32,
        pid: u32,
        /// Process id of the server, if there is one.
        server: Option<u32>,
        /// Milliseconds since the last server went, if there is none.
        #[serde(default)]
        alone_for: Option<u64>,
        /// Seconds without a server after which the connections are closed.
        #[serde(default)]
        abandon_after: u64,
    },
    /// Done; how many descriptors it concerned.
    Done { count: usize },
    /// One of those that were asked for; its descriptor comes along. `End` follows the last.
    Item { key: String, note: String },
    /// No more of them.
    End,
    /// Not done.
    Refused { reason: String },
}
