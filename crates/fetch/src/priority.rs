//! Who waits for a span decides when it is fetched.

/// Why a span is fetched; the more urgent is the smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Priority {
    /// A reader waits.
    Demand,
    /// A sequential reader will be there soon.
    Readahead,
    /// A recorded start-up profile says that it will be read.
    Profile,
    /// Nobody has asked; the layer is being filled.
    Background,
}

impl Priority {
    /// All, the most urgent first.
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
