//! The images that the kit builds are what other programs take for images. Needs skopeo.

use std::process::Command;

use soci_testkit::image::{large_file_image, python_image, small_image};
use soci_testkit::{Content, ImageBuilder, Layer, LayerCompression, TestRoot};

fn skopeo_inspect(dir: &std::path::Path, tag: &str) -> serde_json::Value {
    let output = Command::new("skopeo")
        .args(["inspect", &format!("oci:{}:{tag}", dir.display())])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_built_image_has_the_digests_that_its_manifest_names() {
    let root = TestRoot::new().unwrap();
    let image = small_image(root.path(), "small").unwrap();
    let seen = skopeo_inspect(root.path(), "small");
    assert_eq!(seen["Digest"], image.manifest.digest.to_string());
    for layer in &image.layers {
        let blob = std::fs::read(soci_testkit::image::layout::blob_path(
            root.path(),
            layer.digest,
        ))
        .unwrap();
        assert_eq!(soci_oci::Digest::of(&blob), layer.digest);
        assert_eq!(blob.len() as u64, layer.size);
    }
}

#[test]
fn equal_declarations_give_equal_images() {
    let (one, two) = (TestRoot::new().unwrap(), TestRoot::new().unwrap());
    let first = large_file_image(one.path(), "x", 3 << 20).unwrap();
    let second = large_file_image(two.path(), "x", 3 << 20).unwrap();
    assert_eq!(first.manifest, second.manifest);
}

#[test]
fn every_compression_holds_the_same_tar() {
    let root = TestRoot::new().unwrap();
    let layer = || {
        Layer::new().dir("d").file(
            "d/f",
            Content::Text {
                seed: 1,
                length: 300_000,
            },
        )
    };
    let forms = [
        LayerCompression::Plain,
        LayerCompression::Gzip {
            level: 0,
            member_size: None,
        },
        LayerCompression::Gzip {
            level: 9,
            member_size: Some(100_000),
        },
    ];
    let diff_ids: Vec<String> = forms
        .into_iter()
        .map(|form| {
            let dir = root.dir(&format!("{form:?}").len().to_string()).unwrap();
            let image = ImageBuilder::new()
                .layer_with(layer(), form)
                .write(&dir, "x")
                .unwrap();
            let blob = soci_testkit::image::layout::blob_path(&dir, image.layers[0].digest);
            let mut tar = Vec::new();
            let file = std::fs::File::open(blob).unwrap();
            if form == LayerCompression::Plain {
                std::io::Read::read_to_end(&mut std::io::BufReader::new(file), &mut tar).unwrap();
            } else {
                let mut decoder = flate2::read::MultiGzDecoder::new(file);
                std::io::Read::read_to_end(&mut decoder, &mut tar).unwrap();
            }
            soci_oci::Digest::of(&tar).to_string()
        })
        .collect();
    assert_eq!(diff_ids[0], diff_ids[1]);
    assert_eq!(diff_ids[0], diff_ids[2]);
}

#[test]
fn the_python_image_is_as_large_as_the_demo_promises() {
    let image = python_image().unwrap();
    assert!(image.layers.len() >= 4, "{} layers", image.layers.len());
    assert!(
        image.compressed_size() >= 100_000_000,
        "{} bytes",
        image.compressed_size()
    );
}
