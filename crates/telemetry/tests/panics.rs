//! A panic as the log shows it; in a process of its own, since hook and log are global.

use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;
use soci_telemetry::{JsonLog, log_panics};
use tracing_subscriber::layer::SubscriberExt as _;

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

#[test]
fn a_panic_is_one_json_line_with_level_panic() {
    let out = CapturedBytes::default();
    let subscriber = tracing_subscriber::registry().with(JsonLog::new(out.clone()));
    tracing::subscriber::set_global_default(subscriber).unwrap();
    log_panics();
    let thread = std::thread::Builder::new().name("worker".to_owned());
    let number = 7;
    assert!(
        thread
            .spawn(move || panic!("broken {number}"))
            .unwrap()
            .join()
            .is_err()
    );

    let bytes = out.0.lock().clone();
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&line["level"], &line["msg"]),
        (&"panic".into(), &"panic: broken 7".into())
    );
    assert_eq!(line["thread"], "worker");
    assert!(
        line["place"].as_str().unwrap().contains("panics.rs:"),
        "{line}"
    );
}
