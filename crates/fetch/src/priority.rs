//! Priorities of spans, and a value for each of them.

/// Why a span is fetched. The most urgent priority is the smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Priority {
    /// A reader waits for it.
    Demand,
    /// It lies ahead of a sequential reader.
    Readahead,
    /// It is part of a recorded start-up profile.
    Profile,
    /// The layer is being filled in the background.
    Background,
}

impl Priority {
    /// Whether neither a reader nor the position of one requests it.
    pub(crate) const fn is_background(self) -> bool {
        matches!(self, Self::Profile | Self::Background)
    }

    /// All priorities, the most urgent first.
    pub(crate) const ALL: [Self; 4] = [
        Self::Demand,
        Self::Readahead,
        Self::Profile,
        Self::Background,
    ];
}

/// A value for each priority.
#[derive(Debug, Default)]
pub(crate) struct PerPriority<T> {
    demand: T,
    readahead: T,
    profile: T,
    background: T,
}

impl<T> PerPriority<T> {
    pub(crate) const fn get(&self, priority: Priority) -> &T {
        match priority {
            Priority::Demand => &self.demand,
            Priority::Readahead => &self.readahead,
            Priority::Profile => &self.profile,
            Priority::Background => &self.background,
        }
    }

    pub(crate) const fn get_mut(&mut self, priority: Priority) -> &mut T {
        match priority {
            Priority::Demand => &mut self.demand,
            Priority::Readahead => &mut self.readahead,
            Priority::Profile => &mut self.profile,
            Priority::Background => &mut self.background,
        }
    }
}
