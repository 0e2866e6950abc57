//! Id maps: which ids of a container's user namespace are which outside.

use std::fmt;

use crate::error::SnapshotterError;
use crate::labels::{GID_MAP, Labels, UID_MAP};

/// As many ranges as the kernel takes (UID_GID_MAP_MAX_EXTENTS in linux/user_namespace.h).
const MAX_RANGES: usize = 340;
/// What the kernel shows ids as that have no meaning (`overflowuid`, proc_sys_kernel(5)).
const OVERFLOW: u32 = 65534;

/// A range of ids in a container and what they are outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdRange {
    /// First id in the container.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// How many; not 0.
    pub length: u32,
}

/// Maps of user and group ids. An id outside of all ranges becomes 65534.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdMaps {
    /// User ids.
    pub uid: Vec<IdRange>,
    /// Group ids.
    pub gid: Vec<IdRange>,
}

/// One map as in a label: `container:host:length[,…]`.
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
    /// The maps that the labels of a container's snapshot give: both, or none.
    pub(crate) fn from_labels(labels: &Labels) -> Result<Option<Self>, SnapshotterError> {
        let map = |key: &'static str| -> Result<_, SnapshotterError> {
            let Some(text) = labels.get(key).filter(|text| !text.is_empty()) else {
                return Ok(None);
            };
            let ranges = parse(text)
                .map_err(|reason| SnapshotterError::InvalidIdMap { label: key, reason })?;
            Ok(Some(ranges))
        };
        let maps = map(UID_MAP)?.zip(map(GID_MAP)?);
        Ok(maps.map(|(uid, gid)| Self { uid, gid }))
    }

    /// The maps as the values of the two labels.
    pub(crate) fn to_text(&self) -> (String, String) {
        (Text(&self.uid).to_string(), Text(&self.gid).to_string())
    }

    /// Reads what [`IdMaps::to_text`] wrote.
    pub(crate) fn from_text(uid: &str, gid: &str) -> Result<Self, String> {
        Ok(Self {
            uid: parse(uid)?,
            gid: parse(gid)?,
        })
    }

    /// A user and a group of the container, outside.
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
    // The last id, 4294967295, is none: it means "do not change" to chown(2).
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
    fn what_is_no_map_is_refused() {
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

    #[test]
    fn one_label_alone_is_no_map() {
        let labels = Labels::from([(UID_MAP.to_owned(), "0:1:1".to_owned())]);
        assert_eq!(IdMaps::from_labels(&labels).unwrap(), None);
        let labels = Labels::from([
            (UID_MAP.to_owned(), "0:1:1".to_owned()),
            (GID_MAP.to_owned(), "0:2:1".to_owned()),
        ]);
        let maps = IdMaps::from_labels(&labels).unwrap().unwrap();
        assert_eq!(maps.map(0, 0), (1, 2));
    }
}
