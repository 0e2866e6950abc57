//! Names, labels and label values of the metrics that v0.15 exposes at `/metrics`. Dashboards and
//! alarms are built on them, so they are constants here and not spelled anywhere else.
//!
//! All are stable. Types are what v0.15 declares, not what the name suggests.

/// Histogram, milliseconds; labels [`OPERATION_TYPE`], [`LAYER`]; values [`duration_ms`].
pub const OPERATION_DURATION_MILLISECONDS: &str = "soci_fs_operation_duration_milliseconds";
/// Histogram, microseconds; labels [`OPERATION_TYPE`], [`LAYER`]; values [`duration_us`].
pub const OPERATION_DURATION_MICROSECONDS: &str = "soci_fs_operation_duration_microseconds";
/// Counter; labels [`OPERATION_TYPE`], [`LAYER`]; values [`count`].
pub const OPERATION_COUNT: &str = "soci_fs_operation_count";
/// Gauge, bytes; labels [`OPERATION_TYPE`] (always [`SYNCHRONOUS_BYTES_SERVED`]), [`LAYER`].
pub const BYTES_SERVED: &str = "soci_fs_bytes_served";
/// Gauge; labels [`OPERATION_TYPE`], [`IMAGE`]; values [`image`].
pub const IMAGE_OPERATION_COUNT: &str = "soci_fs_image_operation_count_key";
/// Counter, compressed bytes of a mounted layer that are stored; labels [`DIGEST`], [`MOUNTPOINT`].
pub const LAYER_FETCHED_SIZE_BYTES: &str = "soci_fs_layer_fetched_size_bytes";
/// Counter, compressed bytes of a mounted layer; labels [`DIGEST`], [`MOUNTPOINT`].
pub const LAYER_SIZE_BYTES: &str = "soci_fs_layer_size_bytes";

/// Label: what was done.
pub const OPERATION_TYPE: &str = "operation_type";
/// Label: digest of the layer, empty where no layer is meant.
pub const LAYER: &str = "layer";
/// Label: digest of the image manifest, empty where no image is meant.
pub const IMAGE: &str = "image";
/// Label: digest of the layer.
pub const DIGEST: &str = "digest";
/// Label: path of the mount.
pub const MOUNTPOINT: &str = "mountpoint";

/// The one `operation_type` of [`BYTES_SERVED`].
pub const SYNCHRONOUS_BYTES_SERVED: &str = "synchronous_bytes_served";

/// Upper bounds of the millisecond histogram's buckets: powers of two to 16,384.
pub const MILLISECOND_BUCKETS: [u32; 15] = [
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384,
];
/// Upper bounds of the microsecond histogram's buckets: powers of two to 1,024.
pub const MICROSECOND_BUCKETS: [u32; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

macro_rules! operation_types {
    ($($name:ident = $value:literal: $doc:literal),+ $(,)?) => {
        $(#[doc = $doc] pub const $name: &str = $value;)+
        /// All of them, in the order of the contract.
        pub const ALL: &[&str] = &[$($name),+];
    };
}

/// `operation_type` of [`OPERATION_DURATION_MILLISECONDS`].
pub mod duration_ms {
    operation_types! {
        MOUNT = "mount": "A layer is mounted, from request to answer.",
        REMOTE_REGISTRY_GET = "remote_registry_get": "A ranged request to the registry.",
        INIT_METADATA_STORE = "init_metadata_store": "A layer's file tree is built from its zTOC.",
        ZTOC_UNMARSHAL = "ztoc_unmarshal": "A zTOC is parsed.",
        FUSE_MOUNT = "fuse_mount": "The mount call and the handshake with the kernel.",
        BLOB_REDIRECT = "blob_redirect": "A blob's address is resolved.",
        GET_LAYER_SIZE = "get_layer_size": "A layer's size is asked of the registry. Never here: the zTOC says it.",
        SOCI_INDEX_FETCH = "soci_index_fetch": "A SOCI index is found and fetched; the layer label is the digest of the index, as in v0.15.",
        ZTOC_FETCH = "ztoc_fetch": "A zTOC is fetched.",
        BACKGROUND_FETCH = "background_fetch": "A layer is fetched in the background, first span to last.",
    }
}

/// `operation_type` of [`OPERATION_DURATION_MICROSECONDS`].
pub mod duration_us {
    operation_types! {
        NODE_READDIR = "node_readdir": "A directory is listed.",
        SYNCHRONOUS_READ = "synchronous_read": "A read is answered.",
    }
}

/// `operation_type` of [`OPERATION_COUNT`].
pub mod count {
    operation_types! {
        SYNCHRONOUS_READ = "synchronous_read_count": "Reads answered.",
        SYNCHRONOUS_READ_REMOTE_REGISTRY_FETCH = "synchronous_read_remote_registry_fetch_count":
            "Reads that had to wait for the registry.",
        FUSE_FAILURE_STATE = "fuse_failure_state": "Periods of five minutes with a failed FUSE operation; the layer label is empty.",
        FUSE_NODE_GETATTR_FAILURE = "fuse_node_getattr_failure_count": "Failed getattr of a node.",
        FUSE_NODE_LISTXATTR_FAILURE = "fuse_node_listxattr_failure_count": "Failed listxattr of a node. Never here: attributes are in memory.",
        FUSE_NODE_LOOKUP_FAILURE = "fuse_node_lookup_failure_count": "Failed lookup (not: of a missing name).",
        FUSE_NODE_OPEN_FAILURE = "fuse_node_open_failure_count": "Failed open. Never here: the kernel opens without asking.",
        FUSE_NODE_READDIR_FAILURE = "fuse_node_readdir_failure_count": "Failed readdir.",
        FUSE_FILE_READ_FAILURE = "fuse_file_read_failure_count": "Failed read.",
        FUSE_FILE_GETATTR_FAILURE = "fuse_file_getattr_failure_count": "Failed getattr of an open file. Never here: files are not opened, so that each is one of a node.",
        FUSE_WHITEOUT_GETATTR_FAILURE = "fuse_whiteout_getattr_failure_count": "Failed getattr of a whiteout. Never here: what cannot be found has no kind.",
        FUSE_UNKNOWN_OPERATION_FAILURE = "fuse_unknown_operation_failure_count": "Any other failure: readlink of what is not a link, statfs.",
        FUSE_MOUNT_FAILURE = "fuse_mount_failure_count": "Layers that could not be mounted although there is a zTOC for them; the layer label is empty.",
        LOCAL_MOUNT_FAILURE = "local_mount_failure_count": "Layers that could not be unpacked by the daemon; the layer label is empty.",
        BACKGROUND_SPAN_FETCH = "background_span_fetch_count": "Spans fetched in the background.",
        BACKGROUND_SPAN_FETCH_FAILURE = "background_span_fetch_failure_count":
            "Spans that could not be fetched in the background.",
        BACKGROUND_FETCH_WORK_QUEUE_EVICTED = "background_fetch_work_queue_evicted":
            "Layers dropped from the full background queue.",
        RESOLVE_CACHE_HIT = "resolve_cache_hit": "Layers found resolved.",
        RESOLVE_CACHE_MISS = "resolve_cache_miss": "Layers that had to be resolved.",
        PRERESOLVE_QUEUE_DROP = "preresolve_queue_drop": "Layers not resolved ahead since too many were. Never here: none is dropped.",
    }
}

/// `operation_type` of [`IMAGE_OPERATION_COUNT`].
pub mod image {
    operation_types! {
        BACKGROUND_FETCH_WORK_QUEUE_SIZE = "background_fetch_work_queue_size":
            "Layers in the background queue; the image label is empty.",
        NODE_GETATTR = "node.Getattr": "getattr of a node.",
        NODE_GETXATTR = "node.Getxattr": "getxattr.",
        NODE_LISTXATTR = "node.Listxattr": "listxattr.",
        NODE_LOOKUP = "node.Lookup": "lookup.",
        NODE_OPEN = "node.Open": "open.",
        NODE_READDIR = "node.Readdir": "readdir.",
        NODE_READLINK = "node.Readlink": "readlink.",
        FILE_READ = "file.Read": "read.",
        FILE_GETATTR = "file.Getattr": "getattr of an open file.",
        WHITEOUT_GETATTR = "whiteout.Getattr": "getattr of a whiteout.",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// Per metric: the values of its `operation_type`, empty for none.
    fn golden() -> BTreeMap<String, BTreeSet<String>> {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/golden/v0.15-root/metrics.txt"
        );
        let text = std::fs::read_to_string(path).unwrap();
        let mut metrics: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("soci_")) {
            let (name, labels) = line.split_once('{').unwrap();
            let name = ["_bucket", "_count", "_sum"]
                .iter()
                .find_map(|end| name.strip_suffix(end).filter(|n| n.ends_with("seconds")))
                .unwrap_or(name);
            let values = metrics.entry(name.to_owned()).or_default();
            if let Some((_, value)) = labels.split_once("operation_type=\"") {
                values.insert(value.split('"').next().unwrap().to_owned());
            }
        }
        metrics
    }

    #[test]
    fn every_metric_and_operation_that_v0_15_shows_has_its_constant() {
        let known: BTreeMap<&str, &[&str]> = BTreeMap::from([
            (OPERATION_DURATION_MILLISECONDS, duration_ms::ALL),
            (OPERATION_DURATION_MICROSECONDS, duration_us::ALL),
            (OPERATION_COUNT, count::ALL),
            (BYTES_SERVED, &[SYNCHRONOUS_BYTES_SERVED][..]),
            (IMAGE_OPERATION_COUNT, image::ALL),
            (LAYER_FETCHED_SIZE_BYTES, &[][..]),
            (LAYER_SIZE_BYTES, &[][..]),
        ]);
        let golden = golden();
        assert_eq!(
            golden.keys().map(String::as_str).collect::<Vec<_>>(),
            known.keys().copied().collect::<Vec<_>>()
        );
        for (name, values) in golden {
            for value in values {
                assert!(
                    known[name.as_str()].contains(&value.as_str()),
                    "{name}: {value}"
                );
            }
        }
    }

    #[test]
    fn buckets_are_those_of_v0_15() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/golden/v0.15-root/metrics.txt"
        );
        let text = std::fs::read_to_string(path).unwrap();
        let bounds = |metric: &str| -> BTreeSet<u32> {
            text.lines()
                .filter(|line| line.starts_with(metric))
                .filter_map(|line| line.split_once("le=\"")?.1.split('"').next()?.parse().ok())
                .collect()
        };
        assert_eq!(
            bounds(OPERATION_DURATION_MILLISECONDS),
            BTreeSet::from(MILLISECOND_BUCKETS)
        );
        assert_eq!(
            bounds(OPERATION_DURATION_MICROSECONDS),
            BTreeSet::from(MICROSECOND_BUCKETS)
        );
    }
}
