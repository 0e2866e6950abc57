//! Entry points of the fuzz targets: what clients of the gRPC service send, in any bytes.

use crate::filter::{Fields, Filters};
use crate::labels::{self, Labels};

/// A snapshot whose every field has one value.
struct Same<'a>(&'a str);

impl Fields for Same<'_> {
    fn field(&self, path: &[String]) -> Option<&str> {
        (!path.is_empty()).then_some(self.0)
    }
}

/// The filters of a List call, one a line: they are parsed or refused; those that are parsed are tested.
///
/// # Panics
/// When a value that a filter requires is not one that it accepts.
pub fn filters(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let lines: Vec<&str> = text.lines().take(8).collect();
    let Ok(filters) = Filters::parse(&lines) else {
        return;
    };
    for value in ["", "a", text.get(..64).unwrap_or(text)] {
        let _ = filters.accepts(&Same(value));
    }
    let _ = (filters.accept_all(), filters.demanded(&["name"]));
    if let [line] = lines.as_slice()
        && !line.contains(',')
        && let Some(wanted) = filters.demanded(&["name"])
        && let [wanted] = wanted.as_slice()
    {
        assert!(filters.accepts(&Same(wanted)), "{line:?}");
    }
}

/// The labels of a snapshot, one a line as `key=value`, whose keys are known ones if they are one digit.
pub fn labels(data: &[u8]) {
    const KNOWN: [&str; 10] = [
        labels::UID_MAP,
        labels::GID_MAP,
        labels::TARGET,
        labels::IMAGE_REF,
        labels::LAYER_DIGEST,
        labels::LAYER_SIZE,
        labels::MANIFEST_DIGEST,
        labels::NAMESPACE,
        labels::REMOTE,
        labels::HAS_INDEX,
    ];
    let text = String::from_utf8_lossy(data);
    let all: Labels = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| {
            let known = key.parse::<usize>().ok().and_then(|at| KNOWN.get(at));
            let key = known.map_or(key, |known| known);
            (key.to_owned(), value.to_owned())
        })
        .collect();
    if let Ok(all) = labels::check(all) {
        let _ = labels::id_maps(&all);
        let _ = soci_containerd::labels::LayerLabels::parse(&all);
    }
}
