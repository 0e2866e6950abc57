//! What the daemon tells its operator: the JSON log on stderr, and its metrics.

#![forbid(unsafe_code)]

pub mod catalog;
mod fields;
mod level;
mod line;
mod line_queue;
mod log;
mod log_limit;
mod meters;
pub mod metrics;
mod panics;

pub use level::{Level, ParseLevelError};
pub use log::{JsonLog, dropped_lines, fatal, flush, init, init_text, init_text_with};
pub use log_limit::LogLimit;
pub use meters::{Meters, MetersError, Sample};
pub use panics::log_panics;
