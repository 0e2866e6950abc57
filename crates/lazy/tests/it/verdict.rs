//! A zTOC that does not describe its layer: what is shown of its files, and whether the layer is mounted
//! and used.

use std::fs;

use soci_fetch::FetchConfig;
use soci_layer::{ChainUse, LayerProvider as _, LayerRequest, UseRefusal, UsedLayer};
use soci_lazy::LazyConfig;
use soci_oci::Digest;
use soci_ztoc::{BuildOptions, Compression, Ztoc, build};

use crate::large_ztoc::{alone, small, world};
use crate::provider::{World, blocking};

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
