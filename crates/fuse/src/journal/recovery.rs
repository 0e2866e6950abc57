//! What a server does with the journal of the one before.

use std::collections::HashMap;
use std::io;

use super::index::{Index, Records, RequestKey, Shares};
use super::layout::{ENTRY_ROOM, Entry, FIRST_ENTRIES, JournalLayout, MAGIC, VERSION};
use super::numbered::{entries, entry, unrecorded};
use super::slot_records;
use super::strikes::{ExitKind, Strikes};
use crate::error::FuseError;
use crate::shared_memory::{Extent, SharedMemory};

/// How often the kernel is asked to send a request again before it is forgotten: one that it does not
/// send was answered, or given up by its caller.
pub(super) const FORGET_AFTER: u32 = 4;

/// The version of the format that an extent has; changes with [`super::layout`].
const fn version_of(extent: Extent) -> u64 {
    match extent {
        Extent::First => 1,
        Extent::Whole => VERSION,
    }
}

/// Marks new memory as a journal.
pub(super) fn begin(memory: &SharedMemory) {
    memory.layout().magic.set(MAGIC);
    memory.layout().version.set(version_of(memory.extent()));
}

pub(super) fn check_version(memory: &SharedMemory) -> Result<(), FuseError> {
    let layout = memory.layout();
    let (version, known) = (layout.version.get(), version_of(memory.extent()));
    if (layout.magic.get(), version) == (MAGIC, known) {
        return Ok(());
    }
    Err(FuseError::Journal(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("it is of version {version}, and {known} is known"),
    )))
}

/// Turns everything that was in flight into interrupted entries with one more strike.
pub(super) fn recover(memory: &SharedMemory, exit: ExitKind) -> Index {
    let mut index = Index {
        entries: recover_entries(memory, exit),
        unrecorded: recover_unrecorded(memory),
        shares: Shares::default(),
        retired: false,
    };
    let layout = memory.layout();
    for slot_records::Found {
        connection,
        unique,
        bytes,
    } in slot_records::left_in_slots(layout)
    {
        let request = (connection, unique);
        // If it was deferred, its entry has counted this death.
        if index.entries.get(request).is_none()
            && let Some(free) = index.take_entry(memory, request)
        {
            let strikes = Strikes::default().plus(exit);
            entry(memory, free).fill(Entry::INTERRUPTED, request, strikes, &bytes);
        }
    }
    for slot in &layout.slots {
        slot.clear_length();
    }
    for ((connection, _), _) in index.entries.iter() {
        index.shares.add(connection);
    }
    index
}

fn recover_entries(memory: &SharedMemory, exit: ExitKind) -> Records {
    let end = entries(memory);
    let next = match memory.extent() {
        Extent::First => end,
        Extent::Whole => FIRST_ENTRIES + number(memory.layout().more_used.get()),
    };
    let next = next.min(end);
    let mut used = HashMap::new();
    for number in 0..next {
        let entry = entry(memory, number);
        match entry.state.get() {
            Entry::WAITING => entry.set_strikes(entry.strikes().plus(exit)),
            Entry::INTERRUPTED if entry.age.get() < FORGET_AFTER => {}
            state => {
                if state != Entry::FREE {
                    entry.state.set(Entry::FREE);
                }
                continue;
            }
        }
        entry.state.set(Entry::INTERRUPTED);
        let request = (entry.connection.get(), entry.unique.get());
        if used.insert(request, number).is_some() {
            // Only if a recovery was cut short. Both are the same.
            tracing::debug!("a request was in the journal twice");
        }
    }
    Records::continued(end, next, used)
}

fn recover_unrecorded(memory: &SharedMemory) -> Records {
    let end = unrecorded(memory);
    let next = number(memory.layout().unrecorded_used.get()).min(end);
    let ids = memory.extension().map(|extension| &extension.unrecorded);
    let used = ids.into_iter().flatten().take(next).enumerate();
    let used = used.filter_map(|(number, id)| {
        let request: RequestKey = (id.connection.get(), id.unique.get());
        (request.1 != 0).then_some((request, number))
    });
    Records::continued(end, next, used.collect())
}

fn number(stored: u32) -> usize {
    usize::try_from(stored).unwrap_or(usize::MAX / 2)
}

/// Copies what is in flight to memory of the current version.
pub(super) fn converted(memory: &SharedMemory) -> io::Result<SharedMemory> {
    let next = SharedMemory::create(Extent::Whole)?;
    begin(&next);
    copy_left(memory.layout(), next.layout());
    Ok(next)
}

fn copy_left(from: &JournalLayout, to: &JournalLayout) {
    for (from, to) in from.entries.iter().zip(&to.entries) {
        let state = from.state.get();
        if state == Entry::FREE {
            continue;
        }
        let request = (from.connection.get(), from.unique.get());
        let mut bytes = [0; ENTRY_ROOM];
        from.bytes.read(&mut bytes);
        let length = usize::try_from(from.length.get()).unwrap_or(0);
        to.fill(
            state,
            request,
            from.strikes(),
            &bytes[..length.min(ENTRY_ROOM)],
        );
        to.age.set(from.age.get());
    }
}
