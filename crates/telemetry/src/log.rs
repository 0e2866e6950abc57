//! The log itself: a `tracing` layer that writes one JSON object per event, in one write.

use std::error::Error;
use std::io::Write;
use std::sync::OnceLock;
use std::time::Duration;

use jiff::Zoned;
use parking_lot::Mutex;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry};

use crate::fields::Fields;
use crate::level::Level;
use crate::line::line;
use crate::line_queue::LineQueue;

/// Targets that give an event a level which `tracing` does not have.
pub(crate) const FATAL: &str = "soci_telemetry::fatal";
pub(crate) const PANIC: &str = "soci_telemetry::panic";

/// Whether a target belongs to a crate of this workspace: all of them carry the prefix `soci_`.
///
/// Events of other crates are limited to warnings, because HTTP libraries log request headers, which
/// hold credentials, at lower levels.
fn is_ours(target: &str) -> bool {
    let krate = target.split("::").next().unwrap_or_default();
    krate == "soci" || krate.starts_with("soci_")
}

/// The lines of the JSON log of this process.
static QUEUE: OnceLock<LineQueue> = OnceLock::new();

/// Longest wait for the reader of stderr at the end of the process.
const AT_THE_END: Duration = Duration::from_secs(2);

/// Starts the JSON log on stderr for the whole process. A second call changes nothing.
///
/// A thread of its own writes the lines, so that no other waits for the reader of stderr. It is started with
/// the first line. Lines that it does not read in time are dropped, and a line says how many.
pub fn init(level: Level) {
    let queue = QUEUE.get_or_init(|| LineQueue::new(std::io::stderr()));
    start(level, &[], JsonLog::new(queue.clone()));
}

/// Waits until the lines of the JSON log are written, for two seconds at most. To be called before the
/// process ends.
pub fn flush() {
    flush_within(AT_THE_END);
}

pub(crate) fn flush_within(limit: Duration) {
    if let Some(queue) = QUEUE.get() {
        queue.flush(limit);
    }
}

/// Number of lines of the JSON log that were dropped because stderr was not read.
#[must_use]
pub fn dropped_lines() -> u64 {
    QUEUE.get().map_or(0, LineQueue::all_dropped)
}

/// Starts a log for people on stderr, as the CLI's `--debug` wants it: `LEVEL message key=value…`.
/// A second call changes nothing.
pub fn init_text(level: Level) {
    init_text_with(level, &[]);
}

/// Like [`init_text`]; events of `targets` are shown at every level. Targets that end in
/// `::dump` are shown only when they are among them.
pub fn init_text_with(level: Level, targets: &'static [&'static str]) {
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(|| PrintableLine(std::io::stderr()))
        .with_ansi(false)
        .with_target(false)
        .without_time();
    start(level, targets, layer);
}

/// Writes each event, which arrives in one write and ends with a newline, as one line that a terminal shows and
/// does not obey: what registries and images say is in it.
struct PrintableLine<W>(W);

impl<W: Write> Write for PrintableLine<W> {
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        self.0
            .write_all(format!("{}\n", soci_errors::printable(text)).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

fn start(
    level: Level,
    targets: &'static [&'static str],
    layer: impl Layer<Registry> + Send + Sync,
) {
    let subscriber = Registry::default().with(layer.with_filter(shown(level, targets)));
    // An error means that a log was started before, which stays.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

pub(crate) fn shown(
    level: Level,
    targets: &'static [&'static str],
) -> FilterFn<impl Fn(&Metadata<'_>) -> bool> {
    let ours = level.filter();
    let others = ours.min(LevelFilter::WARN);
    let most = if targets.is_empty() {
        ours
    } else {
        LevelFilter::TRACE
    };
    tracing_subscriber::filter::filter_fn(move |meta| {
        if targets.contains(&meta.target()) {
            return true;
        }
        if meta.target().ends_with("::dump") {
            return false;
        }
        *meta.level() <= if is_ours(meta.target()) { ours } else { others }
    })
    .with_max_level_hint(most)
}

/// Logs why the process cannot continue, with level `fatal`. The caller then exits.
pub fn fatal(message: &str, error: &(dyn Error + 'static)) {
    tracing::error!(target: FATAL, error = %soci_errors::chain(error), "{message}");
    flush();
}

/// A layer that writes each event as a line of JSON to `W`, which should not block, fields of the spans around it included
/// (an event's own field wins, then the inner span's). What cannot be written is dropped: a log
/// that cannot be written is not a reason to stop.
#[derive(Debug)]
pub struct JsonLog<W> {
    out: Mutex<W>,
}

impl<W: Write> JsonLog<W> {
    /// A log to `out`, which should be unbuffered.
    pub fn new(out: W) -> Self {
        Self {
            out: Mutex::new(out),
        }
    }
}

impl<S, W> Layer<S> for JsonLog<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Write + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            record.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            if let Some(outer) = span.extensions().get::<Fields>() {
                fields.values.extend(
                    outer
                        .values
                        .iter()
                        .map(|(name, value)| (*name, value.clone())),
                );
            }
        }
        event.record(&mut fields);
        let level = match event.metadata().target() {
            FATAL => Level::Fatal,
            PANIC => Level::Panic,
            _ => Level::from(*event.metadata().level()),
        };
        let line = line(level, &fields, &Zoned::now());
        let mut out = self.out.lock();
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct CapturedBytes(Arc<Mutex<Vec<u8>>>);

    impl Write for CapturedBytes {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
    }

    fn logged(level: Level, run: impl FnOnce()) -> Vec<serde_json::Map<String, serde_json::Value>> {
        let out = CapturedBytes::default();
        let log = JsonLog::new(out.clone()).with_filter(shown(level, &[]));
        tracing::subscriber::with_default(Registry::default().with(log), run);
        let bytes = out.0.lock().clone();
        String::from_utf8(bytes)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn every_value_is_a_string_whatever_its_type() {
        let lines = logged(Level::Info, || {
            let cause = std::io::Error::other("no route");
            tracing::info!(
                count = 3,
                share = 0.5,
                ok = true,
                path = ?std::path::Path::new("/x"),
                error = &cause as &dyn Error,
                "remote-snapshot-prepared" = "true",
                stream.id = 7_u64,
                "fetched {}\u{1b}[31m", 1
            );
        });
        let line = &lines[0];
        assert!(line.values().all(serde_json::Value::is_string), "{line:?}");
        for (key, value) in [
            ("level", "info"),
            ("msg", "fetched 1\u{1b}[31m"),
            ("count", "3"),
            ("share", "0.5"),
            ("ok", "true"),
            ("path", "\"/x\""),
            ("error", "no route"),
            ("remote-snapshot-prepared", "true"),
            ("stream.id", "7"),
        ] {
            assert_eq!(line[key], value, "{key}");
        }
        assert!(
            line["time"]
                .as_str()
                .unwrap()
                .parse::<jiff::Timestamp>()
                .is_ok()
        );
    }

    #[test]
    fn an_event_carries_the_fields_of_the_spans_around_it_and_its_own_win() {
        let lines = logged(Level::Info, || {
            let outer = tracing::info_span!(
                "prepare",
                key = "outer",
                namespace = "k8s.io",
                late = tracing::field::Empty
            );
            let _outer = outer.enter();
            outer.record("late", 1);
            let inner = tracing::info_span!("mount", key = "inner");
            let _inner = inner.enter();
            tracing::info!("a");
            tracing::info!(key = "own", "b");
        });
        assert_eq!(
            (&lines[0]["key"], &lines[0]["namespace"], &lines[0]["late"]),
            (&"inner".into(), &"k8s.io".into(), &"1".into())
        );
        assert_eq!(lines[1]["key"], "own");
    }

    #[test]
    fn the_level_filters_and_foreign_crates_never_show_their_details() {
        let run = || {
            tracing::trace!("t");
            tracing::debug!("d");
            tracing::info!("i");
            tracing::warn!("w");
            tracing::error!("e");
            tracing::debug!(target: "h2::codec", "authorization: Bearer secret");
            tracing::warn!(target: "hyper::client", "foreign warning");
        };
        let shown = |level| {
            logged(level, run)
                .iter()
                .map(|l| l["msg"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            shown(Level::Trace),
            ["t", "d", "i", "w", "e", "foreign warning"]
        );
        assert_eq!(shown(Level::Warn), ["w", "e", "foreign warning"]);
        assert_eq!(shown(Level::Fatal), ["e"]);
        assert_eq!(shown(Level::Panic), ["e"]);
    }

    #[test]
    fn every_crate_of_the_workspace_logs_at_the_chosen_level() {
        let lines = logged(Level::Info, || {
            tracing::info!(target: "soci_keychain::kube::sync", "following secrets");
            tracing::info!(target: "soci", "cli");
            tracing::info!(target: "soci_snapshotter_grpc::serve", "daemon");
            tracing::info!(target: "socis", "not one of the workspace's crates");
        });
        let shown: Vec<_> = lines.iter().map(|line| line["msg"].as_str()).collect();
        assert_eq!(
            shown,
            [Some("following secrets"), Some("cli"), Some("daemon")]
        );
    }

    #[test]
    fn a_fatal_error_names_its_causes_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot listen")]
        struct Outer(#[source] std::io::Error);

        let lines = logged(Level::Fatal, || {
            fatal(
                "failed to start",
                &Outer(std::io::Error::other("address in use")),
            );
        });
        assert_eq!(
            (&lines[0]["level"], &lines[0]["error"]),
            (&"fatal".into(), &"cannot listen: address in use".into())
        );
    }

    #[test]
    fn a_closed_stderr_stops_nothing() {
        let subscriber = Registry::default().with(JsonLog::new(Closed));
        tracing::subscriber::with_default(subscriber, || tracing::error!("no reader"));
    }

    #[test]
    fn levels_parse_in_any_case_and_nothing_else_does() {
        for word in [
            "trace", "DEBUG", "Info", "warn", "warning", "error", "fatal", "panic",
        ] {
            assert!(word.parse::<Level>().is_ok(), "{word}");
        }
        assert!(
            "loud"
                .parse::<Level>()
                .unwrap_err()
                .to_string()
                .contains("trace, debug, info, warn")
        );
    }
}
