//! The processor time of a process.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// Processor time of a process.
pub(crate) struct ProcessorTime {
    pub(crate) own: Duration,
    /// Time of its children that have ended.
    pub(crate) children: Duration,
}

/// Reads the processor time of a process.
pub(crate) fn processor_time(pid: u32) -> Result<ProcessorTime> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no name in stat")?;
    // utime, stime, cutime and cstime are the fields 14 to 17 (proc_pid_stat(5)), in ticks.
    let ticks = fields.split(' ').skip(11).map(|field| field.parse::<u64>());
    let mut ticks = ticks.map(Result::unwrap_or_default);
    let mut two = || {
        let ticks = ticks.next().unwrap_or_default() + ticks.next().unwrap_or_default();
        Duration::from_millis(ticks.saturating_mul(10))
    };
    let (own, children) = (two(), two());
    Ok(ProcessorTime { own, children })
}
