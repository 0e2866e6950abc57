//! The names under which a server's descriptors are with the holder. A server of another version looks for
//! the same names.

/// The journal's memory.
pub(crate) const JOURNAL: &str = "journal";
/// The listening socket.
pub(crate) const SOCKET: &str = "socket";
/// The memory with the kubelet's credentials.
pub(crate) const CREDENTIALS: &str = "cri-credentials";
