//! The kernel's figures of this process (proc(5)), for metrics and `/debug/vars`.

use std::fs;

/// The figures at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProcessFacts {
    /// User and system time, in seconds.
    pub(crate) cpu_seconds: f64,
    pub(crate) resident_bytes: u64,
    pub(crate) virtual_bytes: u64,
    /// Peak of the resident memory.
    pub(crate) peak_resident_bytes: u64,
    pub(crate) threads: u64,
    pub(crate) open_fds: u64,
    /// 0: no limit.
    pub(crate) max_fds: u64,
    /// Start time, in seconds since 1970.
    pub(crate) start_seconds: f64,
}

impl ProcessFacts {
    /// Reads the figures; those that cannot be read are 0. Does not wait for a disk: proc is memory.
    pub(crate) fn now() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let system = fs::read_to_string("/proc/stat").unwrap_or_default();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Self {
            peak_resident_bytes: kibibytes(&status, "VmHWM:"),
            open_fds: fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count() as u64),
            max_fds: limit.current.unwrap_or_default(),
            ..Self::parse(
                &stat,
                &system,
                rustix::param::clock_ticks_per_second(),
                rustix::param::page_size() as u64,
            )
        }
    }

    /// Parses the files. Fields are numbered from the state, which follows the name in parentheses.
    #[expect(
        clippy::cast_precision_loss,
        reason = "seconds need no 64 bits of precision"
    )]
    fn parse(stat: &str, system: &str, ticks: u64, page: u64) -> Self {
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map(|(_, fields)| fields.split_ascii_whitespace().collect())
            .unwrap_or_default();
        let number = |at: usize| -> u64 {
            let field = fields.get(at).and_then(|field| field.parse().ok());
            field.unwrap_or_default()
        };
        let boot: u64 = system
            .lines()
            .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
            .unwrap_or_default();
        let seconds = |field| number(field) as f64 / ticks.max(1) as f64;
        Self {
            cpu_seconds: seconds(11) + seconds(12),
            threads: number(17),
            start_seconds: boot as f64 + seconds(19),
            virtual_bytes: number(20),
            resident_bytes: number(21).saturating_mul(page),
            ..Self::default()
        }
    }
}

fn kibibytes(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    let number = value.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse().ok());
    u64::saturating_mul(number.unwrap_or_default(), 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_move_the_fields() {
        let stat = "7 (so) ci (x) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 9 0 1000 4096 2 18446744073709551615";
        let facts = ProcessFacts::parse(stat, "cpu 1\nbtime 1700000000\n", 100, 4096);
        assert!((facts.cpu_seconds - 3.0).abs() < 1e-9);
        assert_eq!((facts.threads, facts.virtual_bytes), (9, 4096));
        assert_eq!(facts.resident_bytes, 8192);
        assert!((facts.start_seconds - 1_700_000_010.0).abs() < 1e-9);
    }

    #[test]
    fn this_process_is_alive() {
        let facts = ProcessFacts::now();
        assert!(facts.threads > 0 && facts.open_fds > 0 && facts.resident_bytes > 0);
        assert!(facts.peak_resident_bytes >= facts.resident_bytes / 2);
        assert!(facts.start_seconds > 1.0e9);
    }
}
