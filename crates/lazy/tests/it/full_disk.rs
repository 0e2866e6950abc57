//! A disk that refuses what an image in use needs: its index, a zTOC.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use soci_layer::LayerProvider as _;
use soci_lazy::LazyConfig;
use soci_registry::NoCredentials;
use soci_testkit::{Fault, Rule};

use crate::independence::{FILES, PATIENCE, content, end, layer, process, read, restore};
use crate::large_ztoc::{alone, small, world};
use crate::provider::{World, unmount as unmount_layer};

#[test]
fn an_index_that_the_disk_refuses_is_reported_and_stored_once_the_disk_takes_it() {
    world(vec![layer()]).test(async |world| {
        let (lazy, fetcher) = process(world);
        let stored = world.root.path().join("daemon/content");
        mount_bind(&stored, &stored).unwrap();
        mount_remount(&stored, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();

        // The layer is lazy, and the next start would need the registry.
        let request = alone(world, 0, "a");
        lazy.mount(request.clone()).await.unwrap();
        for file in 0..FILES {
            let path = request.mountpoint.join(format!("f{file}"));
            assert!(read(path).await.unwrap() == content(file));
        }
        let error = || lazy.mounts()[0].index_error.clone();
        let refused = error().unwrap();
        assert!(
            refused.contains("Read-only file system") && refused.contains("/content/"),
            "{refused}"
        );
        // One more mount of the image changes nothing.
        let again = alone(world, 0, "b");
        lazy.mount(again.clone()).await.unwrap();
        assert_eq!(error(), Some(refused));
        unmount_layer(&lazy, &again.mountpoint).await;

        unmount(&stored, UnmountFlags::DETACH).unwrap();
        let saved = async {
            while error().is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, saved).await.unwrap();
        end(lazy, fetcher, &[&request]).await;
        world.proxy.inject(Rule::always(Fault::Reset));
        world.proxy.reset_stats();
        let (lazy, _fetcher) = process(world);
        restore(&lazy, &request).await;
        let first = request.mountpoint.join("f0");
        assert!(read(first).await.unwrap() == content(0));
        let stats = world.proxy.stats();
        assert_eq!(stats.total().requests, 0, "{:?}", stats.log);
        unmount_layer(&lazy, &request.mountpoint).await;
        let left = fs::read_dir(stored.join("blobs/sha256")).unwrap();
        assert_eq!(left.count(), 0, "it goes with its image");
    });
}

#[test]
fn an_index_that_was_refused_and_is_not_used_any_more_is_not_stored_later() {
    world(vec![layer()]).test(async |world| {
        let (lazy, _fetcher) = process(world);
        let stored = world.root.path().join("daemon/content");
        mount_bind(&stored, &stored).unwrap();
        mount_remount(&stored, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
        let request = alone(world, 0, "a");
        lazy.mount(request.clone()).await.unwrap();
        assert!(lazy.mounts()[0].index_error.is_some());
        unmount_layer(&lazy, &request.mountpoint).await;
        unmount(&stored, UnmountFlags::DETACH).unwrap();
        // It is looked up and stored for the next use.
        lazy.mount(request.clone()).await.unwrap();
        assert_eq!(lazy.mounts()[0].index_error, None);
        let left = || fs::read_dir(stored.join("blobs/sha256")).unwrap().count();
        assert_eq!(left(), 1);
        unmount_layer(&lazy, &request.mountpoint).await;
        assert_eq!(left(), 0);
    });
}

/// Takes all room of a file system.
fn fill_up(file: &Path) {
    use std::io::Write as _;
    let mut file = fs::File::create(file).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
}

#[test]
fn a_ztoc_without_room_refuses_its_layer_with_the_reason_and_readers_of_others_continue() {
    world(vec![layer(), small("other")]).test(async |world| {
        let root = world.root.dir("daemon").unwrap();
        let size = c"size=16m";
        mount("tmpfs", &root, "tmpfs", MountFlags::empty(), size).unwrap();
        let client = World::client_with(Arc::new(NoCredentials));
        let (lazy, fetcher) = world.lazy_through(
            client,
            LazyConfig::default(),
            soci_fetch::FetchConfig::default(),
        );
        let first = alone(world, 0, "a");
        lazy.mount(first.clone()).await.unwrap();
        let path = |file: u64| first.mountpoint.join(format!("f{file}"));
        assert!(read(path(0)).await.unwrap() == content(0));
        let filler = root.join("filler");
        fill_up(&filler);

        let second = alone(world, 1, "b");
        let refusal = lazy.mount(second.clone()).await.unwrap_err();
        let text = soci_errors::chain(&refusal);
        assert!(
            text.contains("no space to") && text.contains("/soci/layers/"),
            "{text}"
        );
        assert_eq!(world.stored(), 1, "nothing of it stays");
        // Both what is stored and what is not.
        for file in 0..FILES {
            assert!(read(path(file)).await.unwrap() == content(file));
        }

        fs::remove_file(&filler).unwrap();
        lazy.mount(second.clone()).await.unwrap();
        assert_eq!(
            read(second.mountpoint.join("other")).await.unwrap(),
            b"data"
        );
        for request in [&first, &second] {
            unmount_layer(&lazy, &request.mountpoint).await;
        }
        fetcher.shutdown().await;
        unmount(&root, UnmountFlags::DETACH).unwrap();
    });
}
