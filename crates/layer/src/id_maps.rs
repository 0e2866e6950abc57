//! Id maps: how ids inside a container's user namespace translate to ids outside.

use std::fmt;

/// The most ranges that the kernel accepts (UID_GID_MAP_MAX_EXTENTS in linux/user_namespace.h).
const MAX_RANGES: usize = 340;
/// The id that the kernel shows for ids without a mapping (`overflowuid`, proc_sys_kernel(5)).
const OVERFLOW: u32 = 65534;

/// A range of ids inside a container and the ids that they have outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdRange {
    /// First id in the container.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// Number of ids; not 0.
    pub length: u32,
}

/// Maps of user and group ids. An id outside of all ranges maps to 65534.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdMaps {
    /// User ids.
    pub uid: Vec<IdRange>,
    /// Group ids.
    pub gid: Vec<IdRange>,
}

/// A value is not an id map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IdMapError(String);

/// Formats one map as in a label: `container:host:length[,…]`.
struct Text<'a>(&'a [IdRange]);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(
                f,
                "{comma}{}:{}:{}",
                range.container, range.host, range.length
            )?;
        }
        Ok(())
    }
}

impl IdMaps {
    /// Formats both maps, user ids first, as `container:host:length[,…]`.
    #[must_use]
    pub fn to_text(&self) -> (String, String) {
        (Text(&self.uid).to_string(), Text(&self.gid).to_string())
    }

    /// Parses both maps from the form of [`IdMaps::to_text`].
    ///
    /// # Errors
    /// A map is malformed, has overlapping ranges, or more than the kernel accepts (340).
    pub fn from_text(uid: &str, gid: &str) -> Result<Self, IdMapError> {
        Ok(Self {
            uid: IdRange::parse_map(uid)?,
            gid: IdRange::parse_map(gid)?,
        })
    }

    /// Maps a user and a group of the container to the ids that they have outside.
    #[must_use]
    pub fn map(&self, uid: u32, gid: u32) -> (u32, u32) {
        (map(&self.uid, uid), map(&self.gid, gid))
    }
}

fn map(ranges: &[IdRange], id: u32) -> u32 {
    ranges
        .iter()
        .find_map(|range| {
            let distance = id.checked_sub(range.container)?;
            (distance < range.length).then(|| range.host.checked_add(distance))?
        })
        .unwrap_or(OVERFLOW)
}

impl IdRange {
    /// Parses one map: `container:host:length[,…]`.
    ///
    /// # Errors
    /// As [`IdMaps::from_text`].
    pub fn parse_map(text: &str) -> Result<Vec<Self>, IdMapError> {
        parse(text).map_err(IdMapError)
    }
}

fn parse(text: &str) -> Result<Vec<IdRange>, String> {
    let mut ranges: Vec<IdRange> = Vec::new();
    for part in text.split(',') {
        let range = parse_range(part)?;
        let overlaps = |first: u32, second: u32, known: &IdRange| {
            first < second.saturating_add(known.length)
                && second < first.saturating_add(range.length)
        };
        if ranges.iter().any(|known| {
            overlaps(range.container, known.container, known)
                || overlaps(range.host, known.host, known)
        }) {
            return Err(format!("the range {part:?} overlaps another"));
        }
        if ranges.len() >= MAX_RANGES {
            return Err(format!("it has more than {MAX_RANGES} ranges"));
        }
        ranges.push(range);
    }
    Ok(ranges)
}

fn parse_range(part: &str) -> Result<IdRange, String> {
    let mut numbers = part.split(':').map(|number| {
        // `parse` would take a sign.
        let digits = number.bytes().all(|byte| byte.is_ascii_digit());
        number.parse::<u32>().ok().filter(|_| digits)
    });
    let range = (|| {
        Some(IdRange {
            container: numbers.next()??,
            host: numbers.next()??,
            length: numbers.next()??,
        })
    })();
    let range = range.filter(|_| numbers.next().is_none());
    let range = range.ok_or_else(|| {
        let part: String = part.chars().take(64).collect();
        format!("{part:?} is not CONTAINER:HOST:LENGTH")
    })?;
    // 4294967295 is not an id: it means "do not change" to chown(2).
    let ends = |first: u32| first.checked_add(range.length).is_some();
    if range.length == 0 || !ends(range.container) || !ends(range.host) {
        return Err(format!("the range {part:?} is empty or too long"));
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_and_written_and_applied() {
        let (uid, gid) = ("0:100000:1000,1000:1000:1,1001:101001:64535", "0:7:1");
        let maps = IdMaps::from_text(uid, gid).unwrap();
        assert_eq!(maps.to_text(), (uid.to_owned(), gid.to_owned()));
        assert_eq!(maps.map(0, 0), (100_000, 7));
        assert_eq!(maps.map(999, 1), (100_999, OVERFLOW));
        assert_eq!(maps.map(1000, 0).0, 1000);
        assert_eq!(maps.map(1001, 0).0, 101_001);
        assert_eq!(maps.map(65_536, 0).0, OVERFLOW);
        assert_eq!(maps.map(u32::MAX, 0).0, OVERFLOW);
        assert!(parse("0:0:4294967295").is_ok());
    }

    #[test]
    fn malformed_maps_are_refused() {
        for bad in [
            "",
            "0",
            "0:0",
            "0:0:0",
            "0:0:1:1",
            "a:0:1",
            "-1:0:1",
            "+1:0:1",
            "0:0:1,",
            "0:0:4294967296",
            "1:0:4294967295",
            "0:0:2,1:5:1",
            "0:0:2,5:1:1",
            " 0:0:1",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
