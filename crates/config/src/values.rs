//! The value types of the file: named choices and sizes in bytes.

use std::fmt;
use std::time::Duration;

/// A value that is one of a few words.
pub(crate) trait Choice: Copy + PartialEq + 'static {
    /// The accepted words, the first spelling of a value being the printed one.
    const WORDS: &'static [(&'static str, Self)];

    fn word(self) -> &'static str {
        Self::WORDS
            .iter()
            .find(|(_, v)| *v == self)
            .map_or("", |(word, _)| *word)
    }
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $($word:literal)|+),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl Choice for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$($(($word, Self::$variant)),+),+];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

/// A pause that v0.15 makes by default and this daemon only if the file sets it. It is printed as
/// v0.15 prints it, so that two pauses are equal if they are printed alike: a file that was made of
/// the printed defaults sets them.
#[derive(Debug, Clone, Copy)]
pub struct Pause {
    time: Duration,
    is_set: bool,
}

impl Pause {
    /// One that the file sets.
    pub(crate) const fn set(time: Duration) -> Self {
        Self { time, is_set: true }
    }

    /// One that it does not; `default` is v0.15's.
    pub(crate) const fn not_set(default: Duration) -> Self {
        Self {
            time: default,
            is_set: false,
        }
    }

    /// The pause, if the file sets one.
    #[must_use]
    pub fn if_set(self) -> Option<Duration> {
        self.is_set.then_some(self.time)
    }

    /// The pause that is printed.
    pub(crate) const fn or_default(self) -> Duration {
        self.time
    }
}

impl PartialEq for Pause {
    fn eq(&self, other: &Self) -> bool {
        self.time == other.time
    }
}

choice! {
    /// What `metrics_address` is an address of.
    MetricsNetwork {
        /// `host:port`.
        #[default]
        Tcp = "tcp" | "",
        /// The path of a socket.
        Unix = "unix",
    }
}

choice! {
    /// v0.15's layer metadata database. Ours has none; the words are accepted.
    MetadataStoreType {
        /// One database for all layers.
        #[default]
        Db = "db" | "",
        /// One database for each layer.
        DbMulti = "db-multi",
    }
}

choice! {
    /// What goes when the background queue is full.
    DropPolicy {
        /// The layer that wants in.
        #[default]
        Newest = "newest" | "",
        /// The layer that waits longest.
        Oldest = "oldest",
    }
}

choice! {
    /// What is done with layers that are not verified if containerd's image store does not answer.
    WithoutImageStore {
        /// They are fetched and verified before they are used.
        #[default]
        Verify = "verify" | "",
        /// They are used.
        Allow = "allow",
    }
}

choice! {
    /// Whom a layer on this node serves.
    Sharing {
        /// Every image that has the layer.
        #[default]
        Shared = "shared" | "",
        /// Images whose own repository is known to have the layer.
        Isolated = "isolated",
    }
}

choice! {
    /// Where SOCI artifacts are kept.
    ContentStoreType {
        /// An OCI layout of our own under the root.
        #[default]
        Soci = "soci" | "",
        /// containerd's content store.
        Containerd = "containerd",
    }
}

/// A size as the operator wrote it, such as `8mb`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByteSize {
    text: String,
    bytes: u64,
}

impl ByteSize {
    /// What is accepted, for messages.
    pub(crate) const ALLOWED: &'static str =
        "a size such as \"8mb\" or \"1.5gb\" (b, kb, mb, gb or tb; 1 kb is 1024 bytes)";

    /// Parses `8mb`, `1.5 GB`, `8388608`; fractions of a byte are cut off. `None` if it is not a
    /// size.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let trimmed = text.trim();
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let end = trimmed.find(|c| !is_number(c)).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(end);
        let shift: u32 = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return None,
        };
        let (whole, fraction) = match number.split_once('.') {
            Some((_, "")) => return None,
            Some((whole, fraction)) => (whole, fraction),
            None => (number, ""),
        };
        let mut bytes = whole.parse::<u64>().ok()?.checked_mul(1 << shift)?;
        // Digit by digit in whole numbers: 1.5mb is exactly 1572864 bytes.
        let (mut part, mut scale) = (0_u128, 1_u128);
        for digit in fraction.chars().take(18) {
            part = part * 10 + u128::from(digit.to_digit(10)?);
            scale *= 10;
        }
        if fraction.contains('.') {
            return None;
        }
        bytes = bytes.checked_add(u64::try_from((part << shift) / scale).ok()?)?;
        Some(Self {
            text: text.to_owned(),
            bytes,
        })
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The size as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::ByteSize;

    #[test]
    fn sizes_are_binary_multiples_in_any_case() {
        for (text, bytes) in [
            ("8mb", 8 << 20),
            ("8 MiB", 8 << 20),
            ("1", 1),
            ("3K", 3072),
            ("2GB", 2 << 30),
            ("64b", 64),
            ("1.5MB", 1_572_864),
            ("0.25k", 256),
            ("0", 0),
        ] {
            assert_eq!(
                ByteSize::parse(text).map(|s| s.bytes()),
                Some(bytes),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in [
            "",
            "mb",
            "-1mb",
            "8xb",
            "8.mb",
            ".5mb",
            "1.2.3mb",
            "99999999999999tb",
            "1 m b",
            "٣mb",
        ] {
            assert_eq!(ByteSize::parse(text), None, "{text}");
        }
    }
}
