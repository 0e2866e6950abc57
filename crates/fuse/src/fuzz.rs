//! Entry points for fuzzing: each takes any bytes and must return.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use crate::{DirBuffer, Entry, ExitKind, Journal, Request};

/// Parses bytes as a request. Whatever it names lies within them.
pub fn request(data: &[u8]) {
    let _ = Request::parse(data);
}

/// Lists names cut out of the bytes. The answer is never longer than the room given.
///
/// # Panics
/// If it is: that is what fuzzing looks for.
pub fn directory(data: &[u8]) {
    let Some((&room, names)) = data.split_first() else {
        return;
    };
    let room = u32::from(room) * 16;
    for plus in [false, true] {
        let mut buffer = DirBuffer::new(room, plus);
        for (position, name) in (1..).zip(names.split(|&byte| byte == b'/')) {
            let entry = || Entry {
                attr: None,
                entry_ttl: Duration::MAX,
                attr_ttl: Duration::ZERO,
            };
            if !buffer.push(name, position, 0o100_644, position, entry) {
                break;
            }
        }
        let length = buffer.as_bytes().len();
        assert!(length <= usize::try_from(room).unwrap_or(usize::MAX) && length.is_multiple_of(8));
    }
}

/// Adopts the journal of a server that died, with any bytes in it: adopting it again, as after a death in the
/// middle of it, finds no other requests.
///
/// The input is a sequence of changes: 3 bytes of position, 1 byte of length, the bytes.
///
/// # Panics
/// When that does not hold.
pub fn journal(mut data: &[u8]) {
    let Ok(file) = Journal::create().and_then(|journal| {
        let descriptor = journal.descriptor();
        descriptor
            .map(File::from)
            .map_err(crate::FuseError::Journal)
    }) else {
        return;
    };
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    // Magic and version stay: a journal without them is refused, which a test shows.
    const FIRST: u64 = 16;
    while let Some(([low, middle, high, length], rest)) = data.split_first_chunk() {
        let length = usize::from(*length).min(rest.len());
        let (bytes, rest) = rest.split_at(length);
        let at = u64::from(u32::from_le_bytes([*low, *middle, *high, 0])) % (size - FIRST) + FIRST;
        let room = usize::try_from(size - at).unwrap_or(0).min(bytes.len());
        if file.write_all_at(&bytes[..room], at).is_err() {
            return;
        }
        data = rest;
    }
    let adopt = |exit| {
        let descriptor = file.try_clone().ok()?;
        let journal = Journal::take_over(descriptor.into(), exit).ok()?;
        Some(journal.in_flight())
    };
    let first = adopt(ExitKind::Crashed);
    let second = adopt(ExitKind::Planned);
    // An entry may be older than any server leaves it: then it is forgotten at the second time.
    assert!(
        second <= first,
        "{second:?} requests where there were {first:?}"
    );
    assert_eq!(
        second,
        adopt(ExitKind::Planned),
        "a recovery finds something else"
    );
}
