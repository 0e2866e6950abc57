//! The first read of a file, which compares its tar headers with its entries before any content is
//! shown.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use soci_fetch::{LayerData, ReadError, StillWanted};

use crate::header_check::{Header, HeaderMismatch, headers_to_check};
use crate::tree::Tree;

/// Why content is not shown.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum FirstReadError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Header(#[from] HeaderMismatch),
    #[error("{arrived} bytes arrived instead of {wanted}")]
    Short { arrived: usize, wanted: usize },
}

/// The longest header that is read in one piece with the content behind it, in bytes: the buffer stays
/// with its thread.
const READ_TOGETHER: usize = 64 << 10;

/// What is stored of a first read.
pub(crate) enum Stored<'a> {
    /// The content, and headers that say what their entries say.
    All(&'a [u8]),
    /// Not all: these headers are still to be checked.
    Missing(Vec<Header>),
}

/// Reads content of a file into `buffer`, and checks the headers of the file, as far as they are stored.
pub(crate) fn read_stored<'a>(
    tree: &Tree,
    data: &dyn LayerData,
    ino: u64,
    content: Part,
    buffer: &'a mut Vec<u8>,
) -> Result<Stored<'a>, FirstReadError> {
    let mut headers = headers_to_check(tree, ino);
    let before = headers.pop_if(|header| header.ends_at(content.at) && header.len <= READ_TOGETHER);
    let mut missing = Vec::new();
    for header in headers {
        let mut bytes = vec![0; header.len];
        match bytes.is_empty() || data.try_read(header.at, &mut bytes)? {
            true => tree.headers.check(&header, &bytes)?,
            false => missing.push(header),
        }
    }
    let header_len = before.map_or(0, |header| header.len);
    let both = room(buffer, header_len.saturating_add(content.len));
    let start = content.at.saturating_sub(header_len as u64);
    if !data.try_read(start, both)? {
        missing.extend(before);
        return Ok(Stored::Missing(missing));
    }
    let (stands_there, content) = both.split_at(header_len);
    if let Some(header) = before {
        tree.headers.check(&header, stands_there)?;
    }
    if !missing.is_empty() {
        return Ok(Stored::Missing(missing));
    }
    tree.headers.set_checked(ino);
    Ok(Stored::All(content))
}

/// The first `len` bytes of a buffer, which grows if it must.
pub(crate) fn room(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    buffer.get_mut(..len).unwrap_or_default()
}

/// A part of the tar.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) at: u64,
    pub(crate) len: usize,
}

/// Called once, with the content or the first failure.
type Done = Box<dyn FnOnce(Result<Bytes, FirstReadError>) + Send>;

/// A read of content and of headers that are requested together.
struct FirstRead {
    tree: Arc<Tree>,
    ino: u64,
    state: Mutex<State>,
}

struct State {
    /// Requests that have not been answered.
    pending: usize,
    content: Option<Bytes>,
    /// `None` once it was called.
    done: Option<Done>,
}

/// Reads content of a file whose `missing` headers have not been checked, and them; calls `done` when
/// all is there and right, or with the first failure.
pub(crate) fn read(
    tree: Arc<Tree>,
    data: &dyn LayerData,
    ino: u64,
    mut missing: Vec<Header>,
    Part { at, len: wanted }: Part,
    waits: Arc<dyn Fn() -> bool + Send + Sync>,
    done: impl FnOnce(Result<Bytes, FirstReadError>) + Send + 'static,
) {
    let waits = move || -> StillWanted {
        let waits = Arc::clone(&waits);
        Box::new(move || waits())
    };
    // A file's header stands before its content: most often, one read is enough.
    let before = missing.pop_if(|header| header.ends_at(at));
    let first = Arc::new(FirstRead {
        tree,
        ino,
        state: Mutex::new(State {
            pending: missing.len() + 1,
            content: None,
            done: Some(Box::new(done)),
        }),
    });
    for header in missing {
        let first = Arc::clone(&first);
        let arrived = move |result: Result<Bytes, ReadError>| {
            let checked = whole(result, header.len)
                .and_then(|bytes| Ok(first.tree.headers.check(&header, &bytes)?));
            first.answered(checked.map(|()| None));
        };
        data.read_while(header.at, header.len, waits(), Box::new(arrived));
    }
    let header_len = before.map_or(0, |header| header.len);
    let all = header_len.saturating_add(wanted);
    let arrived = move |result: Result<Bytes, ReadError>| {
        let checked = whole(result, all).and_then(|mut bytes| {
            if let Some(header) = before {
                let stands_there = bytes.split_to(header.len);
                first.tree.headers.check(&header, &stands_there)?;
            }
            Ok(Some(bytes))
        });
        first.answered(checked);
    };
    let start = at.saturating_sub(header_len as u64);
    data.read_while(start, all, waits(), Box::new(arrived));
}

fn whole(result: Result<Bytes, ReadError>, wanted: usize) -> Result<Bytes, FirstReadError> {
    match result? {
        bytes if bytes.len() == wanted => Ok(bytes),
        bytes => Err(FirstReadError::Short {
            arrived: bytes.len(),
            wanted,
        }),
    }
}

impl FirstRead {
    fn answered(&self, result: Result<Option<Bytes>, FirstReadError>) {
        let finished = {
            let mut state = self.state.lock();
            state.pending = state.pending.saturating_sub(1);
            let result = match result {
                Ok(content) => {
                    if content.is_some() {
                        state.content = content;
                    }
                    if state.pending > 0 {
                        return;
                    }
                    Ok(state.content.take().unwrap_or_default())
                }
                Err(error) => Err(error),
            };
            state.done.take().map(|done| (done, result))
        };
        if let Some((done, result)) = finished {
            if result.is_ok() {
                self.tree.headers.set_checked(self.ino);
            }
            done(result);
        }
    }
}
