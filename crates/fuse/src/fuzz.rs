//! Entry points for fuzzing: each takes any bytes and must return.

use crate::{DirBuffer, Entry, Request};
use std::time::Duration;

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
