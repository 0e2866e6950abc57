//! How often a request was in flight when a server ended, and when that is too often.

/// How the previous server ended, as far as requests in flight can be to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// It was asked to.
    Planned,
    /// SIGKILL ended it: an operator's, or the kernel's because memory was short. No request is to blame,
    /// unless it happens repeatedly.
    Killed,
    /// It ended by itself: another signal, an abort, an unexpected exit.
    Crashed,
}

/// How often a request was in flight when a server ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Strikes {
    pub(crate) crashes: u32,
    pub(crate) kills: u32,
}

impl Strikes {
    /// Crashes after which a request is given up.
    const MOST_CRASHES: u32 = 2;
    /// Kills after which a request is given up: more, because on a node with a slow registry some requests
    /// are in flight at any time.
    const MOST_KILLS: u32 = 8;

    /// Whether the request must not be handed to another server.
    pub(crate) const fn are_too_many(self) -> bool {
        self.crashes >= Self::MOST_CRASHES || self.kills >= Self::MOST_KILLS
    }

    pub(super) const fn plus(mut self, exit: ExitKind) -> Self {
        match exit {
            ExitKind::Planned => {}
            ExitKind::Killed => self.kills = self.kills.saturating_add(1),
            ExitKind::Crashed => self.crashes = self.crashes.saturating_add(1),
        }
        self
    }
}
