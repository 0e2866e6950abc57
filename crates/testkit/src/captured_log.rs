//! What the code under test logs.

use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use tracing::subscriber::DefaultGuard;
use tracing::{Dispatch, Level};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Layer, Registry, fmt};

/// Where a [`CapturedLog`] is written.
#[derive(Debug, Clone, Default)]
pub struct LogBuffer(Arc<Mutex<Vec<u8>>>);

impl Write for LogBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the current thread logs, from when it is made until it is dropped.
#[derive(Debug)]
pub struct CapturedLog {
    buffer: LogBuffer,
    _logging: DefaultGuard,
    /// While there is only one dispatcher, tracing disables call sites for good that another thread meets first,
    /// and the threads of other tests have none.
    _second: Dispatch,
}

impl CapturedLog {
    /// Lines of text, down to a level.
    #[must_use]
    pub fn text(level: Level) -> Self {
        Self::through(|buffer| {
            let lines = fmt::layer()
                .with_ansi(false)
                .with_writer(move || buffer.clone());
            lines.with_filter(LevelFilter::from_level(level))
        })
    }

    /// What a layer writes.
    #[must_use]
    pub fn through<L>(layer: impl FnOnce(LogBuffer) -> L) -> Self
    where
        L: Layer<Registry> + Send + Sync,
    {
        let buffer = LogBuffer::default();
        let second = Dispatch::new(tracing_subscriber::registry());
        let subscriber = tracing_subscriber::registry().with(layer(buffer.clone()));
        Self {
            buffer,
            _logging: tracing::subscriber::set_default(subscriber),
            _second: second,
        }
    }

    /// The lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let log = String::from_utf8_lossy(&self.buffer.0.lock()).into_owned();
        log.lines().map(str::to_owned).collect()
    }

    /// The lines so far that have this text.
    #[must_use]
    pub fn about(&self, text: &str) -> Vec<String> {
        let mut lines = self.lines();
        lines.retain(|line| line.contains(text));
        lines
    }

    /// The lines so far with this message, of a log whose lines are JSON.
    #[must_use]
    pub fn json(&self, message: &str) -> Vec<Value> {
        let lines = self.lines();
        let mut lines: Vec<Value> = lines
            .iter()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        lines.retain(|line| line["msg"] == message);
        lines
    }
}
