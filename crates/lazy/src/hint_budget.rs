//! The budget of start hints: what is fetched for them and not read is bounded, absolutely and by
//! a part of what is read.

use std::collections::{HashMap, VecDeque};

/// Number of spans that wait for the budget.
const MOST_WAITING: usize = 8192;

/// A span of one of the layers of a start.
pub(crate) type HintedSpan = (usize, u32);

/// What hints may fetch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HintLimits {
    /// Compressed bytes that may be fetched although nothing is read of them.
    pub(crate) unread: u64,
    /// Part of what is read that is added to that, in percent.
    pub(crate) percent: u64,
}

/// The spans that hints have requested.
#[derive(Debug)]
pub(crate) struct HintBudget {
    limits: HintLimits,
    /// Spans that were granted, with their compressed size, until they are read.
    unread: HashMap<HintedSpan, u64>,
    unread_bytes: u64,
    granted_bytes: u64,
    waiting: VecDeque<(HintedSpan, u64)>,
    /// Those that may take no more than half of the limit.
    last: VecDeque<(HintedSpan, u64)>,
    known: std::collections::HashSet<HintedSpan>,
}

impl HintBudget {
    pub(crate) fn new(limits: HintLimits) -> Self {
        Self {
            limits,
            unread: HashMap::new(),
            unread_bytes: 0,
            granted_bytes: 0,
            waiting: VecDeque::new(),
            last: VecDeque::new(),
            known: std::collections::HashSet::new(),
        }
    }

    /// Requests a span, once.
    pub(crate) fn ask(&mut self, span: HintedSpan, bytes: u64) {
        if self.waiting.len() < MOST_WAITING && self.known.insert(span) {
            self.waiting.push_back((span, bytes));
        }
    }

    /// Requests a span that is less probable than the others, once.
    pub(crate) fn ask_last(&mut self, span: HintedSpan, bytes: u64) {
        if self.last.len() < MOST_WAITING && !self.known.contains(&span) {
            self.last.push_back((span, bytes));
        }
    }

    /// Takes a span whatever the limits are; false if it was requested before.
    pub(crate) fn take(&mut self, span: HintedSpan, bytes: u64) -> bool {
        let new = self.known.insert(span);
        if new {
            self.note(span, bytes);
        }
        new
    }

    fn note(&mut self, span: HintedSpan, bytes: u64) {
        self.unread_bytes = self.unread_bytes.saturating_add(bytes);
        self.granted_bytes = self.granted_bytes.saturating_add(bytes);
        self.unread.insert(span, bytes);
    }

    /// Grants spans in the order in which they were requested, as far as the limits allow.
    /// `was_read` is called for each span that was granted and not read yet; `read_bytes` is the
    /// compressed size of all spans that were read. A span without room in the store is left out for
    /// good.
    pub(crate) fn grant(
        &mut self,
        read_bytes: u64,
        was_read: impl Fn(HintedSpan) -> bool,
        mut take_room: impl FnMut(HintedSpan) -> bool,
    ) -> Vec<HintedSpan> {
        self.unread.retain(|span, bytes| {
            let read = was_read(*span);
            self.unread_bytes -= if read { *bytes } else { 0 };
            !read
        });
        let part = (read_bytes / 100).saturating_mul(self.limits.percent);
        let most = self.limits.unread.saturating_add(part);
        // What is improbable waits until there is a reader at all.
        let most_of_last = if read_bytes > 0 { most / 2 } else { 0 };
        let mut granted = Vec::new();
        while let Some((span, bytes)) = self.waiting.front().copied() {
            if !was_read(span) {
                if self.unread_bytes.saturating_add(bytes) > most {
                    break;
                }
                if take_room(span) {
                    self.note(span, bytes);
                    granted.push(span);
                }
            }
            self.waiting.pop_front();
        }
        while self.waiting.is_empty()
            && let Some((span, bytes)) = self.last.front().copied()
        {
            if !self.known.contains(&span) && !was_read(span) {
                if self.unread_bytes.saturating_add(bytes) > most_of_last {
                    break;
                }
                self.known.insert(span);
                if take_room(span) {
                    self.note(span, bytes);
                    granted.push(span);
                }
            }
            self.last.pop_front();
        }
        granted
    }

    /// The spans that were granted and not read.
    pub(crate) fn unread(&self) -> impl Iterator<Item = HintedSpan> + '_ {
        self.unread.keys().copied()
    }

    /// Compressed bytes that were granted, and those of them that were not read.
    pub(crate) const fn bytes(&self) -> (u64, u64) {
        (self.granted_bytes, self.unread_bytes)
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || !self.last.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HintLimits = HintLimits {
        unread: 100,
        percent: 50,
    };

    #[test]
    fn what_is_not_read_is_bounded() {
        let mut budget = HintBudget::new(LIMITS);
        for span in [0, 1, 1, 2, 3, 4, 5] {
            budget.ask((0, span), 40);
        }
        assert_eq!(budget.grant(0, |_| false, |_| true), [(0, 0), (0, 1)]);
        assert_eq!(budget.grant(0, |_| false, |_| true), []);
        // Half of what was read in addition.
        assert_eq!(budget.grant(100, |_| false, |_| true), [(0, 2)]);
        // What is read makes room, and needs no fetch any more.
        let granted = budget.grant(100, |(_, span)| span != 2 && span != 5, |_| true);
        assert_eq!(granted, [(0, 5)]);
        assert!(!budget.is_waiting());
        assert_eq!(budget.bytes(), (160, 80));
    }

    #[test]
    fn the_number_of_spans_that_wait_is_bounded() {
        let mut budget = HintBudget::new(LIMITS);
        for span in 0..u32::try_from(MOST_WAITING).unwrap() + 10 {
            budget.ask((0, span), 1000);
            budget.ask_last((1, span), 1000);
        }
        assert_eq!(budget.grant(0, |_| false, |_| true), []);
        assert_eq!(budget.known.len(), MOST_WAITING);
        // As soon as everything is allowed.
        let granted = budget.grant(u64::MAX, |_| false, |_| true);
        let of_layer = |layer| granted.iter().filter(|span| span.0 == layer).count();
        assert_eq!((of_layer(0), of_layer(1)), (MOST_WAITING, MOST_WAITING));
    }

    #[test]
    fn a_span_without_room_in_the_store_is_left_out_and_takes_no_part_of_the_budget() {
        let mut budget = HintBudget::new(LIMITS);
        for span in 0..4 {
            budget.ask((0, span), 40);
        }
        budget.ask_last((1, 0), 10);
        let has_room = |(layer, span)| layer == 0 && span >= 2;
        assert_eq!(budget.grant(1000, |_| false, has_room), [(0, 2), (0, 3)]);
        assert_eq!(budget.bytes(), (80, 80));
        budget.ask((0, 0), 40);
        assert_eq!(budget.grant(1000, |_| false, |_| true), [], "for good");
    }
}
