//! Kernel settings of this process: its OOM score, no core dumps, no readable memory, the modes of new
//! files.

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, umask};

/// The server's score for the kernel's choice of a victim when memory is short.
///
/// It is the right one: containers wait for the next server, while other processes of the node would be lost.
/// It is also the process whose memory outside data fills.
const SERVER_SCORE: &str = "500";

/// OOM score of the supervisor, as of the holder: without them containers do not survive the server.
const SUPERVISOR_SCORE: &str = "-999";

/// Prepares a supervisor.
pub(crate) fn of_supervisor() {
    // Refused without CAP_SYS_RESOURCE, which the unit's OOMScoreAdjust= does not need.
    set_score(SUPERVISOR_SCORE);
}

/// Prepares a server, which has secrets in its memory and creates files.
pub(crate) fn of_server() {
    // Raising it needs no privilege.
    set_score(SERVER_SCORE);
    let no_core = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Core, no_core) {
        tracing::warn!(error = %error, "cannot disable core dumps, which would hold credentials");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(error = %error, "cannot protect the memory of this process");
    }
    // What others may read gets its mode explicitly.
    umask(Mode::RWXG | Mode::RWXO);
}

fn set_score(score: &str) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score) {
        tracing::debug!(error = %error, score, "cannot set the OOM score");
    }
}
