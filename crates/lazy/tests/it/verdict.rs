//! A zTOC that does not describe its layer: what is shown of its files, and whether the layer is mounted
//! and used.

use std::fs;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use soci_fetch::FetchConfig;
use soci_layer::{ChainUse, LayerProvider as _, LayerRequest, UseRefusal, UsedLayer};
use soci_lazy::LazyConfig;
use soci_oci::Digest;
use soci_ztoc::{BuildOptions, Compression, Ztoc, build};

use crate::large_ztoc::{alone, small, world};
use crate::provider::{World, blocking, until};

/// A tar of one file, and a zTOC that adds a setuid bit to it.
pub(crate) fn forged() -> (Vec<u8>, Ztoc) {
    let (tar, mut ztoc) = small("file");
    ztoc.toc[0].mode |= 0o4000;
    (tar, ztoc)
}

/// The use of a single layer under this chain ID.
pub(crate) fn use_of(request: &LayerRequest, chain: Digest) -> ChainUse {
    ChainUse {
        namespace: Some(request.namespace.clone()),
        layers: vec![UsedLayer {
            name: format!("test/1/{chain}"),
            mountpoint: Some(request.mountpoint.clone()),
        }],
        admitted_before: false,
    }
}

/// The diff ID of a layer, which is not compressed.
fn diff_id(world: &World, layer: usize) -> Digest {
    world.image.layers[layer]
}

#[test]
fn a_file_whose_header_is_not_its_entry_is_eio_unless_the_check_is_off() {
    world(vec![forged()]).test(async |world| {
        for check_headers in [true, false] {
            let lazy = world.lazy(LazyConfig {
                check_headers,
                ..LazyConfig::default()
            });
            let request = alone(world, 0, "a");
            lazy.mount(request.clone()).await.unwrap();
            let file = request.mountpoint.join("file");
            let read = blocking(move || fs::read(file)).await;
            match check_headers {
                true => assert_eq!(read.unwrap_err().raw_os_error(), Some(5)),
                false => assert_eq!(read.unwrap(), b"data"),
            }
            lazy.unmount(&request.mountpoint).await.unwrap();
        }
    });
}

#[test]
fn a_layer_with_a_stored_verdict_against_it_is_not_mounted_again() {
    world(vec![small("file")]).test(async |world| {
        let diff_id = diff_id(world, 0);
        let mut request = alone(world, 0, "a");
        let label = "containerd.io/snapshot.ref".to_owned();
        request.labels.insert(label, format!("test/1/{diff_id}"));
        request.parent = Some(String::new());
        let other = Digest::of(b"another tar");
        for (verdict, refused) in [
            (r#"{"forged":{"reason":"another mode"}}"#.to_owned(), true),
            (format!(r#"{{"genuine":{{"diff_id":"{other}"}}}}"#), true),
            (format!(r#"{{"genuine":{{"diff_id":"{diff_id}"}}}}"#), false),
        ] {
            let before = world.lazy(LazyConfig::default());
            before.mount(request.clone()).await.unwrap();
            before.leave();
            before.unmount(&request.mountpoint).await.unwrap();
            drop(before);
            assert_eq!(world.stored(), 1);
            let folders = world.root.path().join("daemon/soci/layers");
            for folder in fs::read_dir(&folders).unwrap() {
                fs::write(folder.unwrap().path().join("verdict"), &verdict).unwrap();
            }
            let after = world.lazy(LazyConfig::default());
            let mounted = after.mount(request.clone()).await;
            match refused {
                true => assert_eq!(mounted.unwrap_err().code(), "forged", "{verdict}"),
                false => drop(mounted.unwrap()),
            }
            let shown = fs::read_dir(&request.mountpoint).unwrap().count();
            assert_eq!(shown == 0, refused, "{verdict}");
            after.unmount(&request.mountpoint).await.unwrap();
            drop(after);
            fs::remove_dir_all(folders).unwrap();
        }
    });
}

#[test]
fn without_an_image_store_a_layer_is_verified_before_its_first_use() {
    world(vec![forged(), small("genuine")]).test(async |world| {
        let (first, second) = (alone(world, 0, "a"), alone(world, 1, "b"));
        let of_forged = use_of(&first, diff_id(world, 0));
        for allow in [true, false] {
            let lazy = world.lazy(LazyConfig {
                allow_without_image_store: allow,
                ..LazyConfig::default()
            });
            lazy.mount(first.clone()).await.unwrap();
            let admitted = lazy.admit(of_forged.clone()).await;
            if allow {
                admitted.unwrap();
                lazy.unmount(&first.mountpoint).await.unwrap();
                continue;
            }
            let refusal = admitted.unwrap_err();
            let UseRefusal::Forged { reason } = &refusal else {
                panic!("{refusal}");
            };
            assert!(reason.contains("mode"), "{reason}");
            // What is known to be forged is not used again, by its first user neither.
            let again = ChainUse {
                admitted_before: true,
                ..of_forged.clone()
            };
            let refusal = lazy.admit(again).await.unwrap_err();
            assert!(matches!(refusal, UseRefusal::Forged { .. }), "{refusal}");

            lazy.mount(second.clone()).await.unwrap();
            let own = use_of(&second, diff_id(world, 1));
            lazy.admit(own).await.unwrap();
            // Under the chain ID of another image.
            let stolen = use_of(&second, diff_id(world, 0));
            let refusal = lazy.admit(stolen).await.unwrap_err();
            let UseRefusal::Forged { reason } = &refusal else {
                panic!("{refusal}");
            };
            assert!(reason.contains("diff ID"), "{reason}");
            for request in [&first, &second] {
                lazy.unmount(&request.mountpoint).await.unwrap();
            }
        }
    });
}

#[test]
fn no_more_than_64_mib_behind_the_tar_are_read_to_verify_a_layer() {
    let followed_by = |mebibytes: usize| {
        let (mut tar, _) = small("file");
        tar.resize(tar.len() + (mebibytes << 20), 0);
        let options = BuildOptions::default();
        let built = build(&tar[..], Compression::Uncompressed, options).unwrap();
        (tar, built.ztoc)
    };
    world(vec![followed_by(1), followed_by(65)]).test(async |world| {
        let fetch = FetchConfig::default();
        let (lazy, _) = world.lazy_through(World::client(), LazyConfig::default(), fetch);
        for (layer, name) in [(0, "a"), (1, "b")] {
            let request = alone(world, layer, name);
            lazy.mount(request.clone()).await.unwrap();
            let admitted = lazy.admit(use_of(&request, diff_id(world, layer))).await;
            match layer {
                0 => admitted.unwrap(),
                _ => {
                    let refusal = admitted.unwrap_err().to_string();
                    assert!(refusal.contains("follows the end of the tar"), "{refusal}");
                }
            }
            lazy.unmount(&request.mountpoint).await.unwrap();
        }
    });
}

/// A thread that reads a file past the page cache, over and over.
struct Reader {
    stop: Arc<AtomicBool>,
    /// Returns the longest time between two reads.
    thread: std::thread::JoinHandle<Duration>,
}

impl Reader {
    fn begin(file: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let direct = OFlags::DIRECT.bits().cast_signed();
            let mut options = fs::OpenOptions::new();
            let file = options.read(true).custom_flags(direct).open(file).unwrap();
            let (mut longest, mut last) = (Duration::ZERO, Instant::now());
            while !stopped.load(Ordering::Relaxed) {
                let mut data = [0; 4];
                file.read_exact_at(&mut data, 0).unwrap();
                assert_eq!(&data, b"data");
                longest = longest.max(last.elapsed());
                last = Instant::now();
                std::thread::sleep(Duration::from_millis(1));
            }
            longest.max(last.elapsed())
        });
        Self { stop, thread }
    }

    fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn a_stored_layer_is_verified_when_readers_rest_or_a_client_waits() {
    let verified = |world: &World| {
        let layers = world.root.path().join("daemon/soci/layers");
        let mut layers = fs::read_dir(layers).unwrap();
        layers.any(|layer| layer.unwrap().path().join("verdict").exists())
    };
    for client in [false, true] {
        world(vec![small("file")]).test(async |world| {
            let lazy = world.lazy(LazyConfig::default());
            let chain = diff_id(world, 0);
            let mut request = alone(world, 0, "a");
            let label = "containerd.io/snapshot.ref".to_owned();
            request.labels.insert(label, format!("test/1/{chain}"));
            request.parent = Some(String::new());
            lazy.mount(request.clone()).await.unwrap();
            let reader = Reader::begin(request.mountpoint.join("file"));
            // Layers to verify are looked for every 2 s.
            tokio::time::sleep(Duration::from_secs(5)).await;
            let early = verified(world);
            if client {
                let admit = lazy.admit(use_of(&request, chain));
                // Readers hold up the background for 30 s.
                let admitted = tokio::time::timeout(Duration::from_secs(20), admit).await;
                admitted.unwrap().unwrap();
                assert!(verified(world));
            }
            let longest = blocking(move || reader.end()).await;
            // It cannot tell a reader that this machine keeps waiting from one that rests.
            assert!(!early || longest > Duration::from_secs(1), "{longest:?}");
            until("the layer is verified", || verified(world)).await;
            lazy.unmount(&request.mountpoint).await.unwrap();
        });
    }
}
