//! Keys of the configuration that refusals name.

/// Sets the limit of memory.
pub(crate) const MEMORY_KEY: &str = "limits.unpack_memory_bytes";
/// Sets the limit of output.
pub(crate) const OUTPUT_KEY: &str = "limits.unpack_output_bytes";
/// Sets the time until the first byte.
pub const FIRST_BYTE_KEY: &str = "limits.unpack_first_byte_sec";
