//! What the daemon tells its operator: the JSON log on stderr, and the names of its metrics.

#![forbid(unsafe_code)]

mod fields;
mod level;
mod line;
mod log;
pub mod metrics;
mod panics;

pub use level::{Level, ParseLevelError};
pub use log::{JsonLog, fatal, init, init_text, init_text_with};
pub use panics::log_panics;
