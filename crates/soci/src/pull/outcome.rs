//! What became of each layer, for people and for programs.

use serde::Serialize;
use soci_oci::Digest;

/// What became of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// Mounted lazily: its files are fetched when they are read.
    Lazy,
    /// The snapshotter downloaded and unpacked it.
    UnpackedBySnapshotter,
    /// It was downloaded by this program and unpacked by containerd.
    Unpacked,
}

/// One layer of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Layer {
    /// The layer blob.
    pub(crate) digest: Digest,
    /// Its compressed size in bytes.
    pub(crate) size: u64,
    /// What became of it, now or in an earlier pull.
    pub(crate) state: State,
    /// It was there before this pull.
    pub(crate) already_present: bool,
    /// Why it is not lazy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

impl Layer {
    /// The line for people.
    pub(crate) fn line(&self) -> String {
        let what = match self.state {
            State::Lazy => "lazy",
            State::UnpackedBySnapshotter => "unpacked by the snapshotter",
            State::Unpacked => "unpacked here",
        };
        let already = if self.already_present {
            " (already present)"
        } else {
            ""
        };
        let reason = self
            .reason
            .as_ref()
            .map(|reason| format!(": {reason}"))
            .unwrap_or_default();
        let size = indicatif::BinaryBytes(self.size).to_string();
        format!("{} {size:>10} {what}{already}{reason}", self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_and_why() {
        let layer = Layer {
            digest: Digest::of(b"x"),
            size: 3 << 20,
            state: State::Unpacked,
            already_present: false,
            reason: Some("no SOCI index".to_owned()),
        };
        assert_eq!(
            layer.line(),
            format!("{}   3.00 MiB unpacked here: no SOCI index", layer.digest)
        );
        let json = serde_json::to_value(&layer).unwrap();
        assert_eq!(json["state"], "unpacked");
        assert_eq!(json["alreadyPresent"], false);
        assert_eq!(
            serde_json::to_value(State::UnpackedBySnapshotter).unwrap(),
            "unpacked-by-snapshotter"
        );
    }
}
