//! Which entries of the journal are in use, by whom, and how many a connection may have.

use std::collections::HashMap;

use super::layout::{FIRST_ENTRIES, SharedU32};
use super::numbered;
use crate::shared_memory::SharedMemory;

/// A request: key of its connection, and its id without [`crate::UNIQUE_RESEND`].
pub(super) type RequestKey = (u64, u64);

/// Which entries are in use.
pub(super) struct Index {
    pub(super) entries: Records,
    /// Requests without an entry.
    pub(super) unrecorded: Records,
    pub(super) shares: Shares,
    pub(super) retired: bool,
}

impl Index {
    pub(super) fn new(memory: &SharedMemory) -> Self {
        Self {
            entries: Records::new(numbered::entries(memory)),
            unrecorded: Records::new(numbered::unrecorded(memory)),
            shares: Shares::default(),
            retired: false,
        }
    }

    /// Takes an entry, and records how many of the second part are used by now.
    pub(super) fn take_entry(
        &mut self,
        memory: &SharedMemory,
        request: RequestKey,
    ) -> Option<usize> {
        let number = self.entries.take(request)?;
        let used = number.saturating_sub(FIRST_ENTRIES - 1);
        raise(&memory.layout().more_used, used);
        Some(number)
    }
}

/// Raises a number of used records, before the first of them is filled.
pub(super) fn raise(used: &SharedU32, to: usize) {
    let to = u32::try_from(to).unwrap_or(u32::MAX);
    if to > used.get() {
        used.set(to);
    }
}

/// The records of one kind, which are numbered.
#[derive(Default)]
pub(super) struct Records {
    /// Numbers that were used and are free again. The lowest are used first, so that few pages are.
    free: Vec<usize>,
    /// From here on none was used.
    next: usize,
    end: usize,
    used: HashMap<RequestKey, usize>,
}

impl Records {
    pub(super) fn new(end: usize) -> Self {
        Self {
            end,
            ..Self::default()
        }
    }

    /// Continues with records of which the first `next` were used, and `used` are.
    pub(super) fn continued(end: usize, next: usize, used: HashMap<RequestKey, usize>) -> Self {
        let mut is_used = vec![false; next];
        for &number in used.values() {
            if let Some(is_used) = is_used.get_mut(number) {
                *is_used = true;
            }
        }
        Self {
            free: (0..next).rev().filter(|&number| !is_used[number]).collect(),
            next,
            end,
            used,
        }
    }

    pub(super) fn left(&self) -> usize {
        self.free.len() + (self.end - self.next)
    }

    pub(super) fn len(&self) -> usize {
        self.used.len()
    }

    pub(super) fn get(&self, request: RequestKey) -> Option<usize> {
        self.used.get(&request).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (RequestKey, usize)> + '_ {
        self.used
            .iter()
            .map(|(&request, &number)| (request, number))
    }

    /// Takes a free record for a request, which has none.
    pub(super) fn take(&mut self, request: RequestKey) -> Option<usize> {
        let number = self.free.pop().or_else(|| {
            let fresh = self.next;
            self.next += usize::from(fresh < self.end);
            (fresh < self.end).then_some(fresh)
        })?;
        self.used.insert(request, number);
        Some(number)
    }

    /// Frees a record.
    pub(super) fn free(&mut self, request: RequestKey) -> Option<usize> {
        let number = self.used.remove(&request)?;
        self.free.push(number);
        Some(number)
    }

    /// Frees the records of a connection.
    pub(super) fn free_connection(&mut self, connection: u64) -> Vec<usize> {
        let of_connection = |request: &RequestKey, _: &mut usize| request.0 == connection;
        let freed: Vec<usize> = self
            .used
            .extract_if(of_connection)
            .map(|(_, number)| number)
            .collect();
        self.free.extend(&freed);
        freed
    }
}

/// Number of entries that each connection has.
#[derive(Debug, Default)]
pub(super) struct Shares(HashMap<u64, usize>);

impl Shares {
    pub(super) fn of(&self, connection: u64) -> usize {
        self.0.get(&connection).copied().unwrap_or_default()
    }

    pub(super) fn add(&mut self, connection: u64) {
        *self.0.entry(connection).or_default() += 1;
    }

    pub(super) fn subtract(&mut self, connection: u64, entries: usize) {
        if let Some(share) = self.0.get_mut(&connection) {
            *share = share.saturating_sub(entries);
            if *share == 0 {
                self.0.remove(&connection);
            }
        }
    }
}
