//! What there is to say when no daemon answers: whether mounts wait for one.

use std::path::Path;
use std::time::Duration;

use soci_holder::HolderClient;

use super::table::uptime;
use crate::commands::abort_mounts::number;

/// The state of a root folder whose daemon is away; `None` if a daemon serves it, or nothing waits.
pub(crate) fn without_daemon(root: &Path) -> Option<String> {
    let holder = HolderClient::look(root).ok()??;
    let facts = *holder.info();
    if facts.server.is_some() {
        return None;
    }
    let count = holder.connections().ok()?;
    if count == 0 {
        return None;
    }
    let alone = facts.alone_for.unwrap_or_default();
    Some(sentence(
        root,
        count,
        alone,
        facts.abandon_after.saturating_sub(alone),
    ))
}

fn sentence(root: &Path, count: usize, alone: Duration, left: Duration) -> String {
    let (mounts, wait) = (
        number(count, "mount"),
        if count == 1 { "waits" } else { "wait" },
    );
    format!(
        "no daemon has served {} for {}: {mounts} {wait} for one and will be given up in {}, \
         `soci abort-mounts` does it now; start soci-snapshotter-grpc and their containers continue",
        root.display(),
        uptime(alone.as_secs()),
        uptime(left.as_secs()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_how_many_how_long_and_what_to_do() {
        let second = Duration::from_secs(1);
        assert_eq!(
            sentence(Path::new("/r"), 1, 5 * second, 595 * second),
            "no daemon has served /r for 5s: 1 mount waits for one and will be given up in 9m55s, \
             `soci abort-mounts` does it now; start soci-snapshotter-grpc and their containers continue"
        );
    }
}
