//! The lines of the log on their way to stderr. No thread that logs waits for the reader of stderr.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Zoned;
use parking_lot::{Condvar, Mutex};

use crate::fields::Fields;
use crate::level::Level;
use crate::line::line;

/// Bytes of lines that wait at most, some ten thousand lines. What comes beyond that is dropped and counted.
const CAPACITY: usize = 4 << 20;

/// Lines for one writer, which a thread of its own writes. Clones are the same queue.
#[derive(Clone)]
pub(crate) struct LineQueue(Arc<LockedState>);

struct LockedState {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// A line is being written.
    writing: bool,
    /// Dropped since the last line that says so.
    dropped: u64,
    all_dropped: u64,
    /// The writer, until the first line starts the thread: a program may change its environment before it
    /// has threads.
    writer: Option<Box<dyn Write + Send>>,
}

impl LineQueue {
    pub(crate) fn new(writer: impl Write + Send + 'static) -> Self {
        let state = State {
            writer: Some(Box::new(writer)),
            ..State::default()
        };
        Self(Arc::new(LockedState {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }))
    }

    /// Appends a line, or drops it if too many wait.
    fn push(&self, line: &[u8]) {
        let mut state = self.0.state.lock();
        if state.bytes + line.len() > CAPACITY {
            state.dropped += 1;
            state.all_dropped += 1;
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line.to_vec());
        if let Some(writer) = state.writer.take() {
            let shared = self.0.clone();
            let thread = std::thread::Builder::new().name("log".to_owned());
            // Without a thread there is no log, as without a stderr that can be written.
            let _ = thread.spawn(move || shared.write_all(writer));
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// Waits until every line so far was written, for `limit` at most.
    pub(crate) fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.0.state.lock();
        while state.writing || !state.lines.is_empty() {
            if self.0.changed.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }

    /// Number of lines that were dropped since the start.
    pub(crate) fn all_dropped(&self) -> u64 {
        self.0.state.lock().all_dropped
    }
}

/// Each write is a line.
impl Write for LineQueue {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl LockedState {
    /// Writes lines for as long as the process lives. What cannot be written is lost.
    fn write_all(&self, mut writer: Box<dyn Write + Send>) {
        loop {
            let (line, dropped) = self.next();
            let _ = writer.write_all(&line);
            if dropped > 0 {
                let _ = writer.write_all(&dropped_line(dropped));
            }
            let _ = writer.flush();
            self.state.lock().writing = false;
            self.changed.notify_all();
        }
    }

    /// Waits for a line; returns it with the number of lines that were dropped behind it, if it is the last.
    fn next(&self) -> (Vec<u8>, u64) {
        let mut state = self.state.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.len();
                state.writing = true;
                let is_last = state.lines.is_empty();
                let dropped = if is_last {
                    std::mem::take(&mut state.dropped)
                } else {
                    0
                };
                return (line, dropped);
            }
            self.changed.wait(&mut state);
        }
    }
}

fn dropped_line(lines: u64) -> Vec<u8> {
    let mut fields = Fields {
        message: "dropped log lines because stderr was not read".to_owned(),
        ..Fields::default()
    };
    fields.values.insert("lines", lines.to_string());
    line(Level::Warn, &fields, &Zoned::now())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};

    use super::*;

    #[test]
    fn a_reader_that_stalls_delays_no_line_and_learns_how_many_are_missing() {
        const LINES: usize = 20_000;
        let (reader, writer) = std::io::pipe().unwrap();
        let mut queue = LineQueue::new(writer);
        let line = [&[b'x'; 999][..], b"\n"].concat();
        for _ in 0..LINES {
            queue.write_all(&line).unwrap();
        }
        queue.flush(Duration::ZERO);
        let dropped = usize::try_from(queue.all_dropped()).unwrap();
        assert!(dropped >= LINES - CAPACITY / 1000 - 100, "{dropped}");

        let mut read = 0;
        for line in BufReader::new(reader).lines() {
            let line = line.unwrap();
            if line.starts_with('x') {
                read += 1;
                continue;
            }
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(line["lines"], dropped.to_string());
            assert_eq!(line["level"], "warning");
            break;
        }
        assert_eq!(read + dropped, LINES);
        queue.flush(Duration::from_secs(3600));
    }

    #[test]
    fn a_flush_returns_when_all_is_written_or_after_its_limit() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut queue = LineQueue::new(writer);
        queue.flush(Duration::from_secs(3600));
        queue.write_all(b"one\n").unwrap();
        queue.flush(Duration::from_secs(3600));
        let mut reader = BufReader::new(reader);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "one\n");
        queue.write_all(&[b'x'; 1 << 20]).unwrap();
        queue.flush(Duration::from_millis(10));
    }
}
