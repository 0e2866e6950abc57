//! The memory of the pipeline as the kernel counts it, in a process of its own, and as the pipeline does.
//! Needs root and docker-registry.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use soci_oci::{Descriptor, Digest, Reference, media_types};
use soci_testkit::{Content, ImageBuilder, Layer};
use soci_unpack::{
    ApplyOptions, ImageLimits, LayerBlob, LayerProgress, Pipeline, PipelineConfig, PipelineRequest,
};

use crate::pipeline::{client, diff_id, tar, unpack};
use crate::unpacker::{World, run};

/// Where the other process finds the layers.
const WORLD: &str = "SOCI_UNPACK_TEST_WORLD";
const TEST: &str = "memory::the_budget_is_all_that_pulls_take_whatever_the_layers_and_threads";

const BUDGET: u64 = 48 << 20;
/// What is not the pipeline's: threads, connections, and what the allocator keeps.
const OTHER: u64 = 20 << 20;
const NOISE: u64 = 20 << 20;

/// Text of which blocks are found, and of which many refer back.
fn text(seed: u32) -> String {
    (0..600_000_u32)
        .map(|n| {
            let n = n.wrapping_add(seed).wrapping_mul(2_654_435_761);
            format!("{} of {}\n", n % 977, n % 31)
        })
        .collect()
}

#[test]
fn the_budget_is_all_that_pulls_take_whatever_the_layers_and_threads() {
    if let Ok(layers) = std::env::var(WORLD) {
        pull(&serde_json::from_str(&layers).unwrap());
        return;
    }
    let small = Layer::new().text("file", "small");
    let image = (0..3).fold(ImageBuilder::new().layer(small), |image, seed| {
        let noise = Content::Noise {
            seed: u64::from(seed),
            length: NOISE,
        };
        let texts = Layer::new().text("file", &text(seed));
        image.layer(Layer::new().file("file", noise)).layer(texts)
    });
    let world = World::new(image);
    let mut layers: Vec<Value> = (0..world.image.layers.len())
        .map(|number| {
            json!({
                "reference": world.layer(number).reference.to_string(),
                "descriptor": world.image.layers[number],
                "diffId": diff_id(&world, number).to_string(),
            })
        })
        .collect();
    for seed in 0..4 {
        let tar = tar(&Layer::new().text("file", &text(seed)));
        let packed = zstd::encode_all(&tar[..], 3).unwrap();
        let file = world.root.path().join(format!("zstd-{seed}"));
        fs::write(&file, &packed).unwrap();
        layers.push(json!({
            "file": file,
            "descriptor": Descriptor::of(media_types::OCI_LAYER_ZSTD, &packed),
            "diffId": Digest::of(&tar).to_string(),
        }));
    }
    for threads in [0, 4] {
        let folder = world.root.dir(&format!("fs-{threads}")).unwrap();
        let given = json!({"layers": &layers, "folder": folder, "threads": threads});
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env(WORLD, given.to_string())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let figures = fs::read(folder.join("figures")).unwrap();
        let figures: Value = serde_json::from_slice(&figures).unwrap();
        println!("{threads} threads: {figures}");
        let counted = figures["counted"].as_u64().unwrap();
        assert!(counted > BUDGET / 4 && counted <= BUDGET, "{figures}");
        let taken = figures["taken"].as_u64().unwrap();
        assert!(taken <= BUDGET + OTHER, "{figures}");
        for number in 0..layers.len() {
            let file = fs::metadata(folder.join(number.to_string()).join("file"));
            assert!(file.unwrap().len() > 0);
        }
    }
}

/// Pulls all layers at the same time, as two images, and writes down what that took.
fn pull(given: &Value) {
    let threads = given["threads"].as_u64().unwrap();
    let pipeline = Pipeline::new(PipelineConfig {
        memory: Some(BUDGET),
        inflate_threads: Some(usize::try_from(threads).unwrap()),
        durable: false,
        ..PipelineConfig::default()
    });
    let limits = ImageLimits {
        downloads: 20,
        unpacks: 12,
        chunk: Some(16 << 20),
    };
    let shares = [pipeline.image(limits), pipeline.image(limits)];
    let folder = PathBuf::from(given["folder"].as_str().unwrap());
    let layers = given["layers"].as_array().unwrap();
    let request = |number: usize| {
        let folder = folder.join(number.to_string());
        fs::create_dir(&folder).unwrap();
        request(&layers[number], number, &folder)
    };
    let before = run(async {
        // What is made once is not the pulls'.
        unpack(&shares[0], request(0)).await.unwrap();
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = status("VmRSS:");
        let pulls: Vec<_> = (1..layers.len())
            .map(|number| {
                let (share, request) = (shares[number % 2].clone(), request(number));
                tokio::spawn(async move { unpack(&share, request).await.unwrap() })
            })
            .collect();
        for pull in pulls {
            pull.await.unwrap();
        }
        before
    });
    let counted = pipeline.usage().memory_peak;
    let taken = status("VmHWM:") - before;
    let figures = json!({"counted": counted, "taken": taken});
    fs::write(folder.join("figures"), figures.to_string()).unwrap();
}

fn request(layer: &Value, order: usize, folder: &Path) -> PipelineRequest {
    let descriptor: Descriptor = serde_json::from_value(layer["descriptor"].clone()).unwrap();
    let blob = match layer["file"].as_str() {
        Some(file) => LayerBlob::Local(Box::new(File::open(file).unwrap())),
        None => {
            let reference: Reference = layer["reference"].as_str().unwrap().parse().unwrap();
            LayerBlob::Remote(client().blob(&reference, &descriptor))
        }
    };
    PipelineRequest {
        blob,
        descriptor,
        diff_id: layer["diffId"].as_str().unwrap().parse().unwrap(),
        order,
        directory: folder.to_owned(),
        options: ApplyOptions::default(),
        store: None,
        progress: Arc::<LayerProgress>::default(),
        first_byte: None,
    }
}

/// A figure of this process, in bytes (proc_pid_status(5)).
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let figure = line.unwrap().trim().trim_end_matches(" kB");
    figure.parse::<u64>().unwrap() << 10
}
