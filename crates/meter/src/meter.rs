//! The meter of one piece of work.

/// The most that a piece of work may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory held at a time.
    pub bytes: u64,
    /// Steps in all; what a step is, the work defines.
    pub steps: u64,
}

impl Limits {
    /// No limits.
    pub const NONE: Self = Self {
        bytes: u64::MAX,
        steps: u64::MAX,
    };
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Bytes of memory.
    Bytes,
    /// Steps of work.
    Steps,
}

impl Measure {
    const fn unit(self) -> &'static str {
        match self {
            Self::Bytes => "bytes of memory",
            Self::Steps => "steps",
        }
    }
}

/// A piece of work that needs more than it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverLimit {
    /// The work, as in "unpacking the layer".
    pub what: &'static str,
    /// What is limited.
    pub measure: Measure,
    /// The limit.
    pub limit: u64,
    /// The configuration key that sets the limit, as `section.key`.
    pub key: Option<&'static str>,
}

impl std::fmt::Display for OverLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (what, limit, unit) = (self.what, self.limit, self.measure.unit());
        write!(f, "{what} would take more than {limit} {unit}")?;
        match self.key {
            Some(key) => write!(f, "; {key} sets the limit"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for OverLimit {}

impl OverLimit {
    /// The same with the configuration key that sets the limit.
    #[must_use]
    pub const fn set_by(mut self, key: &'static str) -> Self {
        self.key = Some(key);
        self
    }
}

/// Counts the memory and the steps of one piece of work.
#[derive(Debug)]
pub struct Meter {
    what: &'static str,
    limits: Limits,
    key: Option<&'static str>,
    bytes: u64,
    peak: u64,
    steps: u64,
}

impl Meter {
    /// A meter of `what`, a noun or gerund such as "unpacking the layer".
    #[must_use]
    pub const fn new(what: &'static str, limits: Limits) -> Self {
        Self {
            what,
            limits,
            key: None,
            bytes: 0,
            peak: 0,
            steps: 0,
        }
    }

    /// Names the configuration key that sets the limit of memory, for the error.
    #[must_use]
    pub const fn memory_set_by(mut self, key: &'static str) -> Self {
        self.key = Some(key);
        self
    }

    /// Charges memory that is about to be allocated.
    ///
    /// # Errors
    /// The work holds more than its limit then; nothing is charged.
    pub fn charge(&mut self, bytes: u64) -> Result<(), OverLimit> {
        let held = self.bytes.saturating_add(bytes);
        if held > self.limits.bytes {
            return Err(OverLimit {
                what: self.what,
                measure: Measure::Bytes,
                limit: self.limits.bytes,
                key: self.key,
            });
        }
        self.bytes = held;
        self.peak = self.peak.max(held);
        Ok(())
    }

    /// Charges memory for `count` values of type `T`, as a vector holds them.
    ///
    /// # Errors
    /// As [`Meter::charge`].
    pub fn charge_values<T>(&mut self, count: usize) -> Result<(), OverLimit> {
        self.charge((size_of::<T>() as u64).saturating_mul(count as u64))
    }

    /// Records that charged memory has been freed.
    pub const fn release(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Counts steps.
    ///
    /// # Errors
    /// The work has made more steps than its limit.
    pub const fn step(&mut self, count: u64) -> Result<(), OverLimit> {
        self.steps = self.steps.saturating_add(count);
        if self.steps > self.limits.steps {
            return Err(OverLimit {
                what: self.what,
                measure: Measure::Steps,
                limit: self.limits.steps,
                key: None,
            });
        }
        Ok(())
    }

    /// Sets the limit of steps, once the size of the work is known.
    pub const fn limit_steps(&mut self, steps: u64) {
        self.limits.steps = steps;
    }

    /// Bytes that are charged now.
    #[must_use]
    pub const fn held(&self) -> u64 {
        self.bytes
    }

    /// The most bytes that were charged at a time.
    #[must_use]
    pub const fn peak(&self) -> u64 {
        self.peak
    }

    /// Steps counted so far.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_over_the_limit_is_refused_before_it_is_taken() {
        let limits = Limits {
            bytes: 100,
            steps: 0,
        };
        let mut meter = Meter::new("reading a list", limits).memory_set_by("limits.list_bytes");
        meter.charge(60).unwrap();
        let refused = meter.charge(41).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "reading a list would take more than 100 bytes of memory; limits.list_bytes sets the limit"
        );
        meter.charge(40).unwrap();
        meter.release(50);
        meter.charge_values::<u64>(6).unwrap();
        assert_eq!((meter.held(), meter.peak()), (98, 100));
        assert!(meter.charge(u64::MAX).is_err());
    }

    #[test]
    fn steps_over_the_limit_are_refused() {
        let mut meter = Meter::new(
            "a walk",
            Limits {
                steps: 3,
                ..Limits::NONE
            },
        );
        meter.step(2).unwrap();
        meter.step(1).unwrap();
        let refused = meter.step(1).unwrap_err();
        assert_eq!(refused.to_string(), "a walk would take more than 3 steps");
        assert_eq!(refused.measure, Measure::Steps);
    }
}
