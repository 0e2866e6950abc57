//! Registries whose answers to range requests cannot be used: a layer that is mounted can be read.

use soci_layer::LayerProvider as _;
use soci_testkit::{Fault, Rule};

use crate::independence::{FILES, content, layer, process, read};
use crate::large_ztoc::{alone, world};
use crate::provider::unmount;

#[test]
fn a_layer_that_is_mounted_is_read_right_whatever_a_registry_answers_to_range_requests() {
    const NO_RANGE: (&str, Option<&str>) = ("Content-Range", None);
    let parts = ("Content-Type", Some("multipart/byteranges; boundary=x"));
    let answers = [
        ("the whole", Fault::IgnoreRange),
        ("without a range", Fault::Headers(vec![NO_RANGE])),
        ("of another range", Fault::WrongContentRange(512)),
        ("of a range before", Fault::WrongContentRange(-512)),
        ("in parts", Fault::Headers(vec![parts, NO_RANGE])),
        (
            "compressed",
            Fault::Headers(vec![("Content-Encoding", Some("gzip"))]),
        ),
        ("short", Fault::Shorten(1000)),
        (
            "a page",
            Fault::Headers(vec![("Content-Type", Some("text/html"))]),
        ),
    ];
    world(vec![layer()]).test(async |world| {
        for (case, fault) in answers {
            let rule = Rule::always(fault).method("GET").ranged(true);
            world.proxy.inject(rule);
            // What is known about a host ends with the process.
            let (lazy, _fetcher) = process(world);
            let request = alone(world, 0, "a");
            lazy.mount(request.clone()).await.unwrap();
            let reads = (0..FILES).map(|file| read(request.mountpoint.join(format!("f{file}"))));
            let reads = futures::future::join_all(reads).await;
            for (file, bytes) in (0..).zip(reads) {
                let bytes = bytes.unwrap_or_else(|error| panic!("{case}: file {file}: {error}"));
                assert!(bytes == content(file), "{case}: file {file}");
            }
            assert!(world.proxy.faults_injected() > 0, "{case}");
            world.proxy.clear_faults();
            unmount(&lazy, &request.mountpoint).await;
        }
    });
}
