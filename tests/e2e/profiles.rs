//! Start-up profiles, end to end: recorded by real containers, played at the next pull and at the first
//! start anywhere, through restarts, hand-over and removal, and hostile ones. Needs root, FUSE,
//! containerd, runc, docker-registry and the two programs.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::Instant;

use serde_json::Value;
use soci_testkit::image::shell_layer;
use soci_testkit::{
    Content, Fault, ImageBuilder, Layer, OciImage, Rule, SociCli, Stack, TestRoot, Throttle,
    container_id, with_key,
};

use crate::support::{
    NAMESPACE, NO_BACKGROUND, PATIENCE, indexed, lazy_mounts, left_behind, pull, run, stack,
    status, wait_for_lines, wait_until,
};

/// What a start does: it reads a part of each file, the second one first.
const START: &str = "dd if=/data/two of=/dev/null bs=64k count=16 2>/dev/null; \
    dd if=/data/one of=/dev/null bs=64k count=16 2>/dev/null; echo started";
const COMMAND: [&str; 3] = ["/bin/sh", "-c", START];

const SLOW_LINK: &str = "min_link_bytes_per_sec";
/// Length of each of the two files.
const LENGTH: u64 = 12_000_000;
/// Reads both files whole.
const SUMS: [&str; 3] = ["/bin/sh", "-c", "sha256sum /data/one /data/two"];

/// What [`SUMS`] prints.
fn expected_sums() -> String {
    let digest = |seed| {
        let noise = Content::Noise {
            seed,
            length: LENGTH,
        };
        soci_oci::Digest::of(&noise.to_vec()).hex()
    };
    format!("{}  /data/one\n{}  /data/two\n", digest(1), digest(2))
}

struct ProfileBench {
    stack: Stack,
    root: TestRoot,
    image: OciImage,
}

impl ProfileBench {
    /// `app:plain`: a layer with busybox, and one with two files of noise.
    fn start(config: &str) -> Self {
        Self::start_with(NO_BACKGROUND, config)
    }

    fn start_with(background: &str, config: &str) -> Self {
        // However busy the machine is: on a slow link playing begins at the first read.
        let config = format!("{background}{config}");
        Self::with_files(&with_key(&config, "profile", SLOW_LINK, "0"), LENGTH)
    }

    /// With two files of this length.
    fn with_files(config: &str, length: u64) -> Self {
        let stack = stack(config);
        let root = TestRoot::new().unwrap();
        let dir = root.dir("image").unwrap();
        let noise = |seed| Content::Noise { seed, length };
        let image = ImageBuilder::new()
            .layer(shell_layer().unwrap())
            .layer(
                Layer::new()
                    .dir("data")
                    .file("data/one", noise(1))
                    .file("data/two", noise(2)),
            )
            .command(COMMAND)
            .write(&dir, "plain")
            .unwrap();
        stack.push(&dir, "plain", "app").unwrap();
        Self { stack, root, image }
    }

    /// Converts `app:plain` to `app:TAG`; returns its name seen through the proxy.
    fn convert(&self, tag: &str, more: &[&str]) -> String {
        let registry = &self.stack.registry;
        let name = |tag: &str| registry.docker_reference(&format!("app:{tag}"));
        let (plain, target) = (name("plain"), name(tag));
        let options = ["convert", "--min-layer-size", "0", "--span-size", "262144"];
        let arguments = [&options[..], more, &[&plain, &target]].concat();
        SociCli::standalone().unwrap().output(arguments).unwrap();
        self.stack.reference(&format!("app:{tag}"))
    }

    /// `soci profile` about the daemon's root folder.
    fn profile(&self, arguments: &[&str]) -> String {
        let root = self.stack.daemon.root().display().to_string();
        let arguments = [&["--root", &root, "profile"], arguments].concat();
        SociCli::standalone().unwrap().output(arguments).unwrap()
    }

    /// Records what the start of an image reads, without containerd and the daemon.
    fn recorded_alone(&self, reference: &str) -> String {
        self.recorded_of(reference, &COMMAND).0
    }

    /// The same of any command; returns its output as well.
    fn recorded_of(&self, reference: &str, command: &[&str]) -> (String, String) {
        let file = self.root.path().join("app.profile").display().to_string();
        let run = ["run", "--plain-http", "-o", &file, reference, "--"];
        let output = self.profile(&[&run[..], command].concat());
        (file, output)
    }

    /// Pulls another image, whose command reads all of its only file.
    fn pull_other(&self, length: u64) -> String {
        let dir = self.root.dir("other").unwrap();
        let noise = Content::Noise { seed: 3, length };
        ImageBuilder::new()
            // Of one layer: it shares none.
            .layer(shell_layer().unwrap().dir("data").file("data/three", noise))
            .command(["/bin/sh", "-c", "cat /data/three > /dev/null; echo other"])
            .write(&dir, "other")
            .unwrap();
        let reference = indexed(&self.stack, &dir, "other");
        pull(&self.stack, &reference);
        reference
    }

    /// Bytes of an image's layer of data, the last one, that are stored.
    fn stored_bytes(&self, reference: &str) -> u64 {
        let status = status(&self.stack.daemon);
        let images = status["images"].as_array().unwrap();
        let image = images.iter().find(|image| image["reference"] == reference);
        let layers = image.unwrap()["layers"].as_array().unwrap();
        layers.last().unwrap()["fetchedBytes"].as_u64().unwrap()
    }

    /// Requests for layers.
    fn layer_requests(&self) -> u64 {
        let stats = self.stack.proxy.stats();
        let layers = self.image.layers.iter();
        layers.map(|layer| stats.blob(layer.digest).requests).sum()
    }

    fn start_container(&self, reference: &str) {
        assert_eq!(run(&self.stack, reference, &COMMAND), "started\n");
    }

    /// A part of the answer of `soci status`.
    fn profiles(&self, key: &str) -> Value {
        status(&self.stack.daemon)["profiles"][key].clone()
    }

    fn wait_for(&self, what: &str, done: impl Fn(&Value) -> bool) {
        wait_until(what, PATIENCE, || {
            let profiles = status(&self.stack.daemon)["profiles"].clone();
            match done(&profiles) {
                true => Ok(()),
                false => Err(format!("{profiles}\n{}", self.stack.log_tails())),
            }
        });
    }

    fn wait_until_recorded(&self, starts: u64) {
        self.wait_for("the start is recorded", |profiles| {
            profiles["recorded"] == starts
        });
    }

    /// Waits until nothing of a profile is left to be fetched. It is listed until its start is over,
    /// and where no start is recorded, until then.
    fn wait_until_played(&self) {
        self.wait_for("the profile is fetched", |profiles| {
            let mut playing = profiles["playing"].as_array().unwrap().iter();
            profiles["fetchedBytes"] != 0 && playing.all(|one| one["ended"] == true)
        });
    }

    /// Waits until all layers are stored.
    fn wait_until_stored(&self) {
        wait_until("all layers are stored", PATIENCE, || {
            let images = status(&self.stack.daemon)["images"].clone();
            let layers = images[0]["layers"].as_array().unwrap();
            let stored = |layer: &&Value| layer["fetchedBytes"] == layer["sizeBytes"];
            match layers.iter().filter(stored).count() == self.image.layers.len() {
                true => Ok(()),
                false => Err(images.to_string()),
            }
        });
    }

    /// Bytes of layers that went over the network.
    fn layer_bytes(&self) -> u64 {
        let stats = self.stack.proxy.stats();
        let layers = self.image.layers.iter();
        layers.map(|layer| stats.blob(layer.digest).bytes).sum()
    }

    /// Makes the registry refuse the layers: what a reader would have to wait for ends with an error.
    fn refuse_layers(&self) {
        for layer in &self.image.layers {
            let refuse = Rule::always(Fault::status(403)).blob(layer.digest);
            self.stack.proxy.inject(refuse);
        }
    }

    fn remove(&self, reference: &str) {
        let ctr = self.stack.containerd.ctr(NAMESPACE);
        ctr.output(["images", "rm", "--sync", reference]).unwrap();
        wait_until("the image is gone", PATIENCE, || {
            let left = left_behind(&self.stack);
            left.is_empty().then_some(()).ok_or_else(|| left.join(", "))
        });
    }

    /// Waits until a message is logged as many times, and returns its lines.
    fn logged(&self, message: &str, times: usize) -> Vec<Value> {
        wait_for_lines(&self.stack.daemon, times, |line| line["msg"] == message)
    }
}

#[test]
fn a_recorded_start_is_played_at_the_next_pull_which_then_needs_no_registry() {
    let place = ProfileBench::start("");
    let reference = place.convert("soci", &[]);
    pull(&place.stack, &reference);
    place.stack.proxy.reset_stats();
    place.start_container(&reference);
    let cold = place.layer_bytes();
    place.wait_until_recorded(1);
    let listed = place.profile(&["list", "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["image"], reference.as_str());
    assert_eq!(place.profiles("stored"), 1);
    assert_eq!(place.profiles("played"), 0);

    place.remove(&reference);
    place.stack.proxy.reset_stats();
    pull(&place.stack, &reference);
    place.wait_until_played();
    let played = place.layer_bytes();
    assert!(
        played > 2_000_000 && played <= cold,
        "{played} bytes played, {cold} read at first"
    );
    place.refuse_layers();
    place.start_container(&reference);
    place.stack.proxy.clear_faults();
    place.wait_until_recorded(2);
    assert_eq!(place.profiles("played"), 1);
    assert_eq!(place.profiles("stopped"), 0);
    let [fetched, used] =
        ["fetchedBytes", "usedBytes"].map(|key| place.profiles(key).as_u64().unwrap());
    assert!(
        used * 10 >= fetched * 9,
        "{used} of {fetched} bytes were used"
    );
    place.logged("recorded start-up profile", 2);
}

#[test]
fn what_is_filled_and_verified_during_a_start_is_not_part_of_its_recording() {
    let filling = "[start_hints]\nenable = false\n\
        [background_fetch]\nsilence_period_msec = 100\nfetch_period_msec = 10\n";
    let place = ProfileBench::start_with(filling, "");
    let reference = place.convert("soci", &[]);
    pull(&place.stack, &reference);
    // Runs on while the daemon fills and verifies; it would do so afterwards as well.
    let command = ["/bin/sh", "-c", &format!("{START}; sleep 5")];
    assert_eq!(run(&place.stack, &reference, &command), "started\n");
    place.wait_until_recorded(1);
    // All of both layers was read by the daemon itself.
    place.logged("layer verified", 2);
    let recorded = place.logged("recorded start-up profile", 1);
    let read: u64 = recorded[0]["read_bytes"].as_str().unwrap().parse().unwrap();
    assert!(
        (2_000_000..16_000_000).contains(&read),
        "{read} bytes of 25 MB"
    );
}

#[test]
fn a_profile_in_the_index_is_played_at_the_first_start_anywhere() {
    let place = ProfileBench::start("");
    let plain = place.convert("soci", &[]);
    let file = place.recorded_alone(&plain);
    let reference = place.convert("mine", &["--profile", &file]);
    place.stack.proxy.reset_stats();
    pull(&place.stack, &reference);
    place.wait_until_played();
    // One for each layer.
    place.logged("Successfully loaded prefetch artifact", 2);
    place.refuse_layers();
    place.start_container(&reference);
}

#[test]
fn artifacts_of_files_are_played_if_v0_15s_switch_or_ours_is_on() {
    for (config, plays) in [
        ("[profile]\nenable = false\n", false),
        ("[profile]\nindex = false\n", false),
        (
            "[profile]\nenable = false\n[prefetch]\nenable = true\nmax_concurrency = 1\n",
            true,
        ),
        ("", true),
    ] {
        let place = ProfileBench::start(config);
        let reference = place.convert("files", &["--prefetch-file", "/data/two"]);
        place.stack.proxy.reset_stats();
        pull(&place.stack, &reference);
        if plays {
            place.wait_until_played();
            let bytes = place.layer_bytes();
            assert!(
                (12_000_000..14_000_000).contains(&bytes),
                "{config}: {bytes}"
            );
        }
        place.start_container(&reference);
        let loaded = "Successfully loaded prefetch artifact";
        place.logged(loaded, usize::from(plays));
        assert_eq!(place.profiles("played"), u64::from(plays), "{config}");
    }
}

#[test]
fn a_profile_beside_the_image_is_found_at_the_pull_and_kept() {
    let place = ProfileBench::start("");
    let reference = place.convert("soci", &[]);
    // Without one: the registry is asked once, and again for the list under a tag, as it has no API.
    pull(&place.stack, &reference);
    place.start_container(&reference);
    place.wait_until_recorded(1);
    let asked = place.stack.proxy.stats();
    let asked = asked.of(|request| request.path.contains("/referrers/"));
    assert_eq!(asked.requests, 1);
    let file = place.root.path().join("own.profile").display().to_string();
    place.profile(&["export", "-o", &file, &reference]);
    place.remove(&reference);
    std::fs::remove_dir_all(place.stack.daemon.root().join("soci/profiles")).unwrap();

    place.profile(&["push", "--plain-http", "--profile", &file, &reference]);
    pull(&place.stack, &reference);
    place.wait_until_played();
    place.logged("found start-up profile at the registry", 1);
    place.refuse_layers();
    place.start_container(&reference);
    assert_eq!(
        place.profiles("stored"),
        1,
        "the next pull needs no request for it"
    );
}

/// A child that does not outlive a test that fails.
struct Waiting(Child);

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_next_start_of_an_image_is_written_when_it_is_recorded() {
    let place = ProfileBench::start("");
    let reference = place.convert("soci", &[]);
    let root = place.stack.daemon.root().display().to_string();
    let file = place.root.path().join("next.profile").display().to_string();
    let arguments = [
        "--root", &root, "profile", "record", "-o", &file, &reference,
    ];
    let mut command = SociCli::standalone().unwrap().command(arguments);
    let mut child = Waiting(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut note = String::new();
    let mut stderr = BufReader::new(child.0.stderr.take().unwrap());
    stderr.read_line(&mut note).unwrap();
    assert!(note.contains("waiting for a start of"), "{note}");
    pull(&place.stack, &reference);
    assert!(!std::fs::exists(&file).unwrap());
    place.start_container(&reference);
    place.wait_until_recorded(1);
    assert!(child.0.wait().unwrap().success());
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        place.profile(&["export", &reference])
    );
}

#[test]
fn a_profile_goes_into_an_index_that_is_made_in_containerd() {
    let place = ProfileBench::start("[pull_modes.soci_v1]\nenable = true\n");
    let plain = place.stack.reference("app:plain");
    let (file, output) = place.recorded_of(&plain, &COMMAND);
    assert_eq!(output, "started\n");
    // By another containerd namespace, which has the layers; the profile has another zTOC.
    let build = "build";
    let ctr = place.stack.containerd.ctr(build);
    ctr.pull(&plain, "overlayfs").unwrap();
    let soci = place.stack.soci(build).unwrap();
    let root = place.root.dir("cli").unwrap().display().to_string();
    let create = ["--root", &root, "create", "--min-layer-size", "0"];
    let options = ["--span-size", "262144", "--profile", &file, &plain];
    soci.output([&create[..], &options].concat()).unwrap();
    soci.output(["--root", &root, "push", "--plain-http", &plain])
        .unwrap();
    place.stack.proxy.reset_stats();
    pull(&place.stack, &plain);
    place.wait_until_played();
    place.logged("Successfully loaded prefetch artifact", 2);
    assert_eq!(lazy_mounts(&place.stack), 2);
    let bytes = place.layer_bytes();
    assert!((2_000_000..20_000_000).contains(&bytes), "{bytes}");
}

/// A profile that lists what an image does not have, repeats itself, and lists whole layers.
fn hostile(profile: &str) -> String {
    let mut profile: Value = serde_json::from_str(profile).unwrap();
    let layers = profile["layers"].as_array_mut().unwrap();
    let known = layers.len();
    let foreign = format!("sha256:{}", "7".repeat(64));
    layers.push(serde_json::json!({ "layer": foreign, "ztoc": foreign }));
    let (layer, ztoc) = (layers[0]["layer"].clone(), foreign);
    layers.push(serde_json::json!({ "layer": layer, "ztoc": ztoc }));
    let mut spans = Vec::new();
    for layer in 0..known + 2 {
        for span in (0..600_u64).chain([u64::from(u32::MAX)]) {
            let entry = serde_json::json!([layer, span, span, 0, 100_000]);
            spans.extend([entry.clone(), entry]);
        }
    }
    let blocks = serde_json::json!([[0, [0, 4_000_000_000_u64]], [0, [5, 5]]]);
    profile["recordings"] = serde_json::json!([{ "spans": spans, "blocks": blocks }]);
    profile.to_string()
}

#[test]
fn hostile_profiles_cost_no_more_than_the_layers_and_change_no_byte() {
    let place = ProfileBench::start("");
    let reference = place.convert("soci", &[]);
    let file = place.recorded_alone(&reference);
    let good = std::fs::read_to_string(&file).unwrap();
    let size: u64 = place.image.layers.iter().map(|layer| layer.size).sum();
    let manifest: Value = serde_json::from_str(&good).unwrap();
    let manifest = manifest["manifest"]
        .as_str()
        .unwrap()
        .replace("sha256:", "");
    let folder = place.stack.daemon.root().join("soci/profiles");
    std::fs::create_dir_all(&folder).unwrap();
    let expected = expected_sums();
    let mut recorded = 0;
    for (bad, plays) in [
        (hostile(&good), true),
        (good.replace("\"version\":2", "\"version\":77"), false),
        (format!("{good}{}", " ".repeat(5 << 20)), false),
        ("{\"version\":2".to_owned(), false),
    ] {
        std::fs::write(folder.join(format!("{manifest}.json")), &bad).unwrap();
        place.stack.proxy.reset_stats();
        let played = place.profiles("played").as_u64().unwrap();
        pull(&place.stack, &reference);
        if plays {
            // It never ends: some of what it lists does not exist.
            place.wait_until_stored();
        }
        assert_eq!(run(&place.stack, &reference, &SUMS), expected);
        let fetched = place.layer_bytes();
        assert!(
            fetched <= size + size / 20,
            "{fetched} bytes of layers of {size}"
        );
        let now = place.profiles("played").as_u64().unwrap();
        assert_eq!(now - played, u64::from(plays));
        place.remove(&reference);
        // What the start read takes the place of the bad file.
        recorded += 1;
        place.wait_until_recorded(recorded);
    }
    wait_until("bad profiles are reported", PATIENCE, || {
        let lines = place.stack.daemon.json_log();
        let ignored = lines
            .iter()
            .filter(|line| line["msg"] == "ignoring start-up profile");
        match ignored.count() {
            3.. => Ok(()),
            count => Err(format!("{count} lines")),
        }
    });
}

/// A start whose profile takes a while, because the registry is slow.
fn slow(place: &ProfileBench) -> String {
    let plain = place.convert("soci", &[]);
    let file = place.recorded_alone(&plain);
    let reference = place.convert("mine", &["--profile", &file]);
    place.stack.proxy.reset_stats();
    place.stack.proxy.throttle(Throttle {
        total: Some(400_000),
        ..Throttle::unlimited()
    });
    pull(&place.stack, &reference);
    place.wait_for("it plays", |profiles| {
        let playing = profiles["playing"].as_array();
        playing.is_some_and(|playing| playing.len() == 1 && playing[0]["origin"] == "index")
    });
    reference
}

#[test]
fn a_start_that_a_restart_or_a_hand_over_interrupts_is_played_to_its_end() {
    for hand_over in [false, true] {
        let mut place = ProfileBench::start("");
        let reference = slow(&place);
        if hand_over {
            place.stack.daemon.upgrade().unwrap();
        } else {
            assert!(place.stack.daemon.terminate().unwrap().success());
            place.stack.daemon.start_again().unwrap();
            place.stack.wait_for_snapshotter().unwrap();
        }
        place.wait_for("it plays again", |profiles| profiles["played"] == 1);
        place.stack.proxy.throttle(Throttle::unlimited());
        place.wait_until_played();
        place.refuse_layers();
        place.start_container(&reference);
        place.wait_until_recorded(1);
    }
}

#[test]
fn an_image_that_is_removed_while_its_profile_plays_leaves_nothing() {
    let place = ProfileBench::start("");
    let reference = slow(&place);
    place.remove(&reference);
    place.wait_for("it has ended", |profiles| {
        profiles["playing"].as_array().is_some_and(Vec::is_empty)
    });
    assert_eq!(lazy_mounts(&place.stack), 0);
    place.stack.proxy.throttle(Throttle::unlimited());
    pull(&place.stack, &reference);
    place.start_container(&reference);
}

#[test]
fn a_start_after_an_eviction_plays_what_was_recorded() {
    const LIMIT: u64 = 24 << 20;
    let place = ProfileBench::start(&format!("[layer_store]\nmax_size_bytes = {LIMIT}\n"));
    let reference = place.convert("soci", &[]);
    pull(&place.stack, &reference);
    place.stack.proxy.reset_stats();
    place.start_container(&reference);
    place.wait_until_recorded(1);
    let cold = place.layer_bytes();
    let stored = place.stored_bytes(&reference);
    assert!(stored > 2_000_000, "{stored}");
    // Everything that it reads is stored: nothing is played.
    place.start_container(&reference);
    assert_eq!(place.profiles("played"), 0);

    // Another image needs the space, and goes.
    let other = place.pull_other(LIMIT - (1 << 20));
    assert_eq!(run(&place.stack, &other, &[]), "other\n");
    wait_until("the first image is evicted", PATIENCE, || {
        match place.stored_bytes(&reference) {
            0 => Ok(()),
            left => Err(format!("{left} bytes are stored")),
        }
    });
    place.wait_until_recorded(2);
    let ctr = place.stack.containerd.ctr(NAMESPACE);
    ctr.output(["images", "rm", "--sync", &other]).unwrap();
    wait_until("the other image is gone", PATIENCE, || {
        let images = status(&place.stack.daemon)["images"].clone();
        match images.as_array().unwrap().len() {
            1 => Ok(()),
            _ => Err(images.to_string()),
        }
    });

    place.stack.proxy.reset_stats();
    let container = container_id();
    let create = ["containers", "create", "--snapshotter", "soci"];
    let create = create.into_iter().chain([&reference[..], &container]);
    ctr.output(create).unwrap();
    // Before the container reads anything.
    place.wait_until_played();
    assert_eq!(place.profiles("played"), 1);
    let bytes = place.layer_bytes();
    assert!(
        bytes > 2_000_000 && bytes <= cold,
        "{bytes}, {cold} at first"
    );
    place.refuse_layers();
    assert_eq!(ctr.start_task(&container).unwrap(), "started\n");
}

#[test]
fn a_profile_on_a_node_that_is_full_takes_the_room_that_is_left_and_evicts_nothing() {
    const LIMIT: u64 = 16 << 20;
    let place = ProfileBench::start(&format!("[layer_store]\nmax_size_bytes = {LIMIT}\n"));
    let plain = place.convert("soci", &[]);
    let (file, sums) = place.recorded_of(&plain, &SUMS);
    assert_eq!(sums, expected_sums());
    let reference = place.convert("mine", &["--profile", &file]);
    // An image without a container, which a profile must not displace.
    let other = place.pull_other(6_000_000);
    assert_eq!(run(&place.stack, &other, &[]), "other\n");
    let others = place.stored_bytes(&other);
    assert!(others > 6_000_000, "{others}");
    place.stack.proxy.reset_stats();
    pull(&place.stack, &reference);
    place.wait_until_played();
    // An eighth is left to readers.
    let room = LIMIT - LIMIT / 8 - others;
    let played = place.layer_bytes();
    assert!(
        played > room / 2 && played <= room + (1 << 20),
        "{played} bytes played with room for {room} of 24 MB"
    );
    assert_eq!(place.stored_bytes(&other), others);
    assert_eq!(status(&place.stack.daemon)["store"]["evictedBytes"], 0);
    // What a container reads is served all the same, and is right.
    assert_eq!(run(&place.stack, &reference, &SUMS), expected_sums());
}

#[test]
fn the_profile_of_a_wrong_program_is_stopped() {
    // A link on which playing begins at the first read: everything would be there before, otherwise.
    let config = with_key(NO_BACKGROUND, "profile", SLOW_LINK, "50000000");
    let place = ProfileBench::with_files(&config, 65_000_000);
    let plain = place.convert("soci", &[]);
    let all = "cat /data/one /data/two > /dev/null; echo all";
    let (file, output) = place.recorded_of(&plain, &["/bin/sh", "-c", all]);
    assert_eq!(output, "all\n");
    let reference = place.convert("mine", &["--profile", &file]);
    let size: u64 = place.image.layers.iter().map(|layer| layer.size).sum();
    assert!(size > 130_000_000, "{size}");
    place.stack.proxy.reset_stats();
    place.stack.proxy.throttle(Throttle {
        total: Some(12_000_000),
        ..Throttle::unlimited()
    });
    pull(&place.stack, &reference);
    place.logged(
        "start-up profile waits for the first read on a slow link",
        1,
    );
    // It reads one small file.
    let small = ["/bin/sh", "-c", "cat /etc/passwd > /dev/null; echo small"];
    assert_eq!(run(&place.stack, &reference, &small), "small\n");
    place.wait_until_recorded(1);
    assert_eq!(place.profiles("played"), 1);
    assert_eq!(place.profiles("stopped"), 1);
    let fetched = place.layer_bytes();
    assert!(
        fetched > 16_000_000 && fetched < size / 5 * 4,
        "{fetched} of {size} bytes"
    );
}

#[test]
fn a_registry_that_throttles_while_a_profile_plays_is_left_alone_and_readers_are_served() {
    let place = ProfileBench::start("");
    let plain = place.convert("soci", &[]);
    let (file, _) = place.recorded_of(&plain, &SUMS);
    let reference = place.convert("mine", &["--profile", &file]);
    for layer in &place.image.layers {
        let busy = Fault::Status {
            status: 429,
            headers: vec![("Retry-After".to_owned(), "1".to_owned())],
            body: String::new(),
        };
        place
            .stack
            .proxy
            .inject(Rule::always(busy).blob(layer.digest));
    }
    place.stack.proxy.reset_stats();
    pull(&place.stack, &reference);
    wait_until("it is throttled", PATIENCE, || {
        match place.layer_requests() {
            0 => Err("no request".to_owned()),
            _ => Ok(()),
        }
    });
    let begin = Instant::now();
    // Some of the times for which the registry wants to be left alone.
    wait_until("it has had time for requests", PATIENCE, || {
        match begin.elapsed().as_secs() {
            5.. => Ok(()),
            seconds => Err(format!("{seconds} s")),
        }
    });
    let (requests, seconds) = (place.layer_requests(), begin.elapsed().as_secs());
    // Two requests for each origin are made at a time after the first answers, each once a second.
    let most = 16 + 4 * seconds;
    assert!(requests <= most, "{requests} in {seconds} s");
    assert_eq!(place.layer_bytes(), 0);
    place.stack.proxy.clear_faults();
    assert_eq!(run(&place.stack, &reference, &SUMS), expected_sums());
    place.wait_until_played();
    assert_eq!(place.profiles("stopped"), 0);
}
