//! Start-up profiles, end to end: recorded by real containers, played at the next pull and at the first
//! start anywhere, through restarts, hand-over and removal, and hostile ones. Needs root, FUSE,
//! containerd, runc, docker-registry and the two programs.

use serde_json::Value;
use soci_testkit::image::shell_layer;
use soci_testkit::{
    Content, Fault, ImageBuilder, Layer, OciImage, Rule, SociCli, Stack, TestRoot, Throttle,
    with_key,
};

use crate::support::{
    NAMESPACE, NO_BACKGROUND, PATIENCE, lazy_mounts, left_behind, pull, run, stack, status,
    wait_for_lines, wait_until,
};

/// What a start does: it reads a part of each file, the second one first.
const START: &str = "dd if=/data/two of=/dev/null bs=64k count=16 2>/dev/null; \
    dd if=/data/one of=/dev/null bs=64k count=16 2>/dev/null; echo started";
const COMMAND: [&str; 3] = ["/bin/sh", "-c", START];

const SLOW_LINK: &str = "min_link_bytes_per_sec";

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
        let stack = stack(&with_key(&config, "profile", SLOW_LINK, "0"));
        let root = TestRoot::new().unwrap();
        let dir = root.dir("image").unwrap();
        let noise = |seed| Content::Noise {
            seed,
            length: 12_000_000,
        };
        let image = ImageBuilder::new()
            .layer(shell_layer().unwrap())
            .layer(
                Layer::new()
                    .dir("data")
                    .file("data/one", noise(1))
                    .file("data/two", noise(2)),
            )
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
        let file = self.root.path().join("app.profile").display().to_string();
        let run = ["run", "--plain-http", "-o", &file, reference, "--"];
        assert_eq!(self.profile(&[&run[..], &COMMAND].concat()), "started\n");
        file
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
    let sums = "sha256sum /data/one /data/two";
    let expected = {
        let digest = |seed| {
            let noise = Content::Noise {
                seed,
                length: 12_000_000,
            };
            soci_oci::Digest::of(&noise.to_vec()).hex()
        };
        format!("{}  /data/one\n{}  /data/two\n", digest(1), digest(2))
    };
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
        let seen = run(&place.stack, &reference, &["/bin/sh", "-c", sums]);
        assert_eq!(seen, expected);
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
fn a_registry_that_throttles_while_a_profile_plays_is_left_alone_and_readers_are_served() {
    let place = ProfileBench::start("");
    let plain = place.convert("soci", &[]);
    let file = place.recorded_alone(&plain);
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
            .inject(Rule::always(busy).blob(layer.digest).times(3));
    }
    pull(&place.stack, &reference);
    place.start_container(&reference);
}
