//! The targets by name.

use std::sync::OnceLock;

use crate::{documents, elf, layer};

/// A target: any bytes, after which nothing that must hold was broken.
type Target = fn(&[u8]);

/// All targets. `fuzz/run` reads the names from here.
const TARGETS: &[(&str, Target)] = &[
    ("ztoc_parse", soci_ztoc::fuzz::ztoc_parse),
    ("tar_zinfo", soci_ztoc::fuzz::tar_zinfo),
    ("gzip_checkpoints", soci_ztoc::fuzz::gzip_checkpoints),
    ("soci_index", soci_ztoc::fuzz::soci_index),
    ("prefetch", soci_ztoc::fuzz::prefetch),
    ("build_gzip", soci_ztoc::fuzz::build_gzip),
    ("tar_scan", soci_ztoc::fuzz::tar_scan),
    ("tree", layer::tree),
    ("unpack", layer::unpack),
    ("elf_walk", layer::elf_walk),
    ("fuse_request", soci_fuse::fuzz::request),
    ("fuse_directory", soci_fuse::fuzz::directory),
    ("journal", soci_fuse::fuzz::journal),
    ("holder_packet", soci_holder::fuzz::packet),
    ("spans_file", layer::spans_file),
    ("bolt_database", soci_bolt::fuzz::database),
    ("challenge", soci_registry::fuzz::challenge),
    ("content_range", soci_registry::fuzz::content_range),
    ("link", soci_registry::fuzz::link),
    ("docker_config", soci_registry::fuzz::docker_config),
    ("hosts_toml", soci_registry::fuzz::hosts_toml),
    ("kubeconfig", soci_keychain::fuzz::kubeconfig),
    ("credential_providers", soci_keychain::fuzz::credential_providers),
    ("profile", documents::profile),
    ("filters", soci_snapshotter::fuzz::filters),
    ("labels", soci_snapshotter::fuzz::labels),
    ("reference", documents::reference),
    ("manifest", documents::manifest),
    ("push_event", soci_index_builder::fuzz::push_event),
    ("elf", |data| drop(elf::links(data))),
];

/// Returns the target that the environment names.
///
/// # Panics
/// When there is none of that name.
pub(crate) fn chosen() -> Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let found = TARGETS.iter().find(|(known, _)| *known == name);
        found
            .unwrap_or_else(|| panic!("FUZZ_TARGET={name:?} is not a target of src/targets.rs"))
            .1
    })
}
