//! How the memory of the pipeline is divided. The parts are fixed: layers that have their threads never wait
//! for a part that others of them fill.

/// What the threads of a layer take beside all other parts, in bytes: blocks on their way, bytes that come
/// from this machine, and small files.
pub(crate) const LAYER: u64 = 4 << 20;

/// The window of zstd's usual levels.
const WINDOW: u64 = 8 << 20;

/// Memory of the pipeline for each core, and the least and the most that there is in all. The least holds what
/// 20 requests bring and a fifth of a second of 250 MB/s beside it, while layers wait for the disk.
const EACH_CORE: u64 = 32 << 20;
const LEAST: u64 = 96 << 20;
const MOST: u64 = 512 << 20;
/// With less than this nothing is inflated ahead.
const SMALL: u64 = 40 << 20;

/// The parts of the memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// For compressed bytes.
    pub(crate) compressed: u64,
    /// For what is inflated ahead.
    pub(crate) ahead: u64,
    /// For windows of zstd.
    pub(crate) windows: u64,
    /// How many layers may be unpacked at a time.
    pub(crate) layers: u64,
}

/// The memory of a machine with so many cores.
pub(crate) fn usual(cores: usize) -> u64 {
    (cores as u64).saturating_mul(EACH_CORE).clamp(LEAST, MOST)
}

impl Budget {
    /// Divides `memory` for at most so many layers at a time. `ahead` is what inflating ahead can use of the
    /// part that it is offered.
    pub(crate) fn of(memory: u64, layers: u64, ahead: impl FnOnce(u64) -> u64) -> Self {
        let layers = layers.min(memory / 4 / LAYER).max(1);
        let ahead = ahead(if memory < SMALL { 0 } else { memory / 3 });
        // Without inflating ahead there are few cores, and as few layers of zstd proceed at a time.
        let least = if ahead == 0 { 2 * WINDOW } else { WINDOW };
        let windows = (memory / 8).max(least.min(memory / 4));
        let others = layers * LAYER + ahead + windows;
        Self {
            // A budget that is too small for any layer does not stop it.
            compressed: memory.saturating_sub(others).max(memory / 5).max(1),
            ahead,
            windows,
            layers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_no_more_than_the_whole_on_any_machine() {
        for cores in [1, 2, 3, 4, 8, 16, 32, 96, 1000] {
            for memory in [usual(cores), 8 << 20, 20 << 20, 64 << 20, 1 << 30] {
                for ahead in [0, 10 << 20, 120 << 20] {
                    let offered = |most: u64| if most < ahead { 0 } else { ahead };
                    let budget = Budget::of(memory, 2 * cores as u64, offered);
                    let parts =
                        budget.compressed + budget.ahead + budget.windows + budget.layers * LAYER;
                    assert!(parts <= memory, "{cores}, {memory}: {budget:?}");
                    assert!(budget.compressed >= memory / 5, "{budget:?}");
                    assert!(budget.layers >= 1 && budget.layers <= 2 * cores as u64);
                }
            }
        }
    }

    #[test]
    fn two_cores_have_room_for_what_fills_a_link_and_for_what_waits() {
        let budget = Budget::of(usual(2), 5, |_| 0);
        assert_eq!((budget.layers, budget.windows >> 20), (5, 16));
        assert_eq!(budget.compressed >> 20, 60);
    }

    #[test]
    fn larger_machines_have_more_up_to_a_limit() {
        let memory = [1, 2, 4, 8, 16, 96].map(|cores| usual(cores) >> 20);
        assert_eq!(memory, [96, 96, 128, 256, 512, 512]);
    }
}
