//! An entry: how it is written, and what the next server reads.

use super::layout::{ENTRY_ROOM, Entry};
use super::strikes::Strikes;

/// A request whose server died.
#[derive(Debug)]
pub(crate) struct Interrupted {
    /// The request as it was read.
    pub(crate) bytes: Vec<u8>,
    pub(crate) strikes: Strikes,
}

impl Entry {
    /// Writes an entry; its state last, so that a death in between leaves a free one.
    pub(super) fn fill(&self, state: u32, request: (u64, u64), strikes: Strikes, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(ENTRY_ROOM)];
        self.age.set(0);
        self.connection.set(request.0);
        self.unique.set(request.1);
        self.set_strikes(strikes);
        self.length.set(u32::try_from(bytes.len()).unwrap_or(0));
        self.bytes.write(bytes);
        self.state.set(state);
    }

    pub(super) fn interrupted(&self) -> Interrupted {
        let length = usize::try_from(self.length.get()).unwrap_or(0);
        let mut bytes = vec![0; length.min(ENTRY_ROOM)];
        self.bytes.read(&mut bytes);
        Interrupted {
            bytes,
            strikes: self.strikes(),
        }
    }

    pub(super) fn strikes(&self) -> Strikes {
        Strikes {
            crashes: self.crashes.get(),
            kills: self.kills.get(),
        }
    }

    pub(super) fn set_strikes(&self, strikes: Strikes) {
        self.crashes.set(strikes.crashes);
        self.kills.set(strikes.kills);
    }
}
