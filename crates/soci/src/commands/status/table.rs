//! The status for people.

use std::fmt::Write as _;

use indicatif::BinaryBytes;
use soci_errors::printable;
use soci_status::api::{GetResponse, Health, Image, Layer, Profiles, Pull, PulledLayer};

use crate::output::Page;
use crate::style::Style;

/// Between columns.
const GAP: &str = "  ";

/// The whole status. Programs read the JSON instead: sizes have units in any case.
pub(crate) fn render(status: &GetResponse, style: Style) -> Page {
    let mut page = Page::default();
    head(status, &mut page);
    for pull in &status.pulls {
        page.line("");
        pull_block(pull, style, &mut page);
    }
    for image in &status.images {
        page.line("");
        block(image, style, &mut page);
    }
    for severed in &status.severed {
        page.line("");
        page.line(format!(
            "severed: snapshot {} ({}): {}; restart its container",
            severed.snapshot, severed.snapshot_id, severed.reason
        ));
    }
    page
}

fn head(status: &GetResponse, page: &mut Page) {
    if let Some(daemon) = &status.daemon {
        let revision: String = daemon.revision.chars().take(12).collect();
        page.line(format!(
            "soci-snapshotter-grpc {} ({revision}), process {}, server {}, up {}, root {}",
            daemon.version,
            daemon.pid,
            daemon.server_pid,
            uptime(daemon.uptime_seconds),
            daemon.root
        ));
    }
    if let Some(holder) = &status.holder {
        page.line(format!(
            "holder process {}: {} FUSE connections, given up after {} without a daemon",
            holder.pid,
            holder.connections,
            uptime(holder.abandon_after_seconds)
        ));
    }
    if let Some(store) = &status.store {
        let limit = match store.limit_bytes {
            Some(limit) => format!(" of {}", BinaryBytes(limit)),
            None => String::new(),
        };
        let mut line = format!(
            "layer store: {}{limit} in {} spans of {} layers",
            BinaryBytes(store.size_bytes),
            store.spans,
            store.layers
        );
        if store.unpacked_bytes > 0 {
            let _ = write!(line, ", {} unpacked", BinaryBytes(store.unpacked_bytes));
        }
        if store.evicted_bytes > 0 {
            let _ = write!(line, ", {} evicted", BinaryBytes(store.evicted_bytes));
        }
        let held = store.size_bytes.saturating_add(store.unpacked_bytes);
        if store.limit_bytes.is_some_and(|limit| held > limit) {
            line.push_str(
                "; above the limit: the rest is in use, unpacked, or cannot be fetched again",
            );
        }
        page.line(line);
    }
    if let Some(counts) = &status.counts {
        page.line(format!(
            "layers: {} lazy, {} local, {} deferred, {} broken",
            counts.lazy, counts.local, counts.deferred, counts.broken
        ));
    }
    if let Some(profiles) = &status.profiles {
        start_ups(profiles, page);
    }
    registries(status, page);
}

/// The folders with hosts.toml files, and the hosts of the registries that are known to have some.
fn registries(status: &GetResponse, page: &mut Page) {
    for folder in &status.hosts_folders {
        page.line(printable(&format!("hosts.toml files: {folder}")));
    }
    for registry in &status.registries {
        page.line(printable(&format!("registry {}:", registry.name)));
        if let Some(error) = &registry.error {
            page.line(printable(&format!("{GAP}error: {error}")));
        }
        for host in &registry.hosts {
            let state = match (host.failures, host.asked_last_for_ms) {
                (0, _) => String::new(),
                (failures, None) => format!(", {failures} failures, tried again"),
                (failures, Some(left)) => {
                    let seconds = left.div_ceil(1000);
                    format!(", {failures} failures, asked last for {seconds}s")
                }
            };
            let can = host.capabilities.join(", ");
            page.line(printable(&format!("{GAP}{} ({can}){state}", host.url)));
        }
    }
}

fn start_ups(profiles: &Profiles, page: &mut Page) {
    let off = if profiles.enabled {
        ""
    } else {
        ", recording is disabled"
    };
    page.line(format!(
        "start-up profiles: {} stored ({}), {} recorded, {} played, {} stopped{off}",
        profiles.stored,
        BinaryBytes(profiles.stored_bytes),
        profiles.recorded,
        profiles.played,
        profiles.stopped
    ));
    if profiles.fetched_bytes > 0 {
        let unused = profiles.fetched_bytes.saturating_sub(profiles.used_bytes);
        page.line(format!(
            "fetched by profiles: {}, used {}, not used {}",
            BinaryBytes(profiles.fetched_bytes),
            BinaryBytes(profiles.used_bytes),
            BinaryBytes(unused)
        ));
    }
    for playing in &profiles.playing {
        let state = match (playing.held, playing.ended) {
            (_, true) => ", nothing left to fetch",
            (true, false) => ", held: too little is used",
            (false, false) => "",
        };
        let line = format!(
            "playing {} ({}, {} spans): {} fetched, {} used{state}",
            playing.reference,
            playing.origin,
            playing.spans,
            BinaryBytes(playing.fetched_bytes),
            BinaryBytes(playing.used_bytes)
        );
        page.line(line);
    }
}

/// An image that is being pulled: how far, how fast, and its layers.
fn pull_block(pull: &Pull, style: Style, page: &mut Page) {
    let sum = |of: fn(&PulledLayer) -> u64| pull.layers.iter().map(of).sum::<u64>();
    page.line(format!(
        "pulling {}: {} of {} after {}, {}/s",
        printable(&pull.reference),
        BinaryBytes(sum(|layer| layer.downloaded_bytes)),
        BinaryBytes(sum(|layer| layer.size_bytes)),
        uptime(pull.elapsed_milliseconds / 1000),
        BinaryBytes(pull.bytes_per_second)
    ));
    for layer in &pull.layers {
        page.line(format!(
            "{GAP}{}{GAP}{}{GAP}{} of {}, {} unpacked",
            style.digest(&layer.digest),
            printable(&layer.state),
            BinaryBytes(layer.downloaded_bytes),
            BinaryBytes(layer.size_bytes),
            BinaryBytes(layer.unpacked_bytes)
        ));
    }
}

/// An image and a table of its layers.
fn block(image: &Image, style: Style, page: &mut Page) {
    page.line(match image.reference.as_str() {
        "" => "layers of unnamed images",
        reference => reference,
    });
    if !image.manifest_digest.is_empty() {
        page.line(format!("manifest {}", image.manifest_digest));
    }
    if let Some(index) = &image.index_digest {
        page.line(format!("index    {index}"));
    }
    if let Some(line) = stored_line(image) {
        page.line(line);
    }
    if let Some(error) = &image.error {
        page.line(printable(&format!("error    {error}")));
    }
    let head = ["LAYER", "SIZE", "STATE", "FETCHED", "NOTE"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(head)
        .chain(image.layers.iter().map(|layer| row(layer, style)))
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let [layer, size, state, fetched] = [width(0), width(1), width(2), width(3)];
    for [a, b, c, d, note] in &rows {
        let row =
            format!("{GAP}{a:layer$}{GAP}{b:>size$}{GAP}{c:state$}{GAP}{d:>fetched$}{GAP}{note}");
        page.line(row.trim_end());
    }
}

/// How much of an image is stored, and what filling it does; `None` from a daemon that does not say.
fn stored_line(image: &Image) -> Option<String> {
    let stored = BinaryBytes(image.stored_bytes);
    let lazy = BinaryBytes(image.lazy_bytes);
    let percent = image.stored_percent();
    let why = match image.fill.as_str() {
        "" => return None,
        "complete" => return Some("stored   complete: it needs its registry no more".to_owned()),
        "waiting" => "waiting until readers are quiet",
        "queued" => "others are filled before it",
        "throttled" => "the registry has too many requests, filling rests",
        "failing" => "the registry does not answer or refuses, filling is tried again",
        "no-room" => "filling has stopped: the disk's reserve or the store's limit is reached",
        "off" => "it is not filled ([background_fetch], or too many layers waited)",
        "filling" => {
            let rate = BinaryBytes(image.bytes_per_second);
            return Some(format!(
                "stored   {percent:.1} % ({stored} of {lazy}), filling, {rate}/s"
            ));
        }
        other => other,
    };
    Some(format!(
        "stored   {percent:.1} % ({stored} of {lazy}), {why}"
    ))
}

fn row(layer: &Layer, style: Style) -> [String; 5] {
    let name = match layer.digest.as_str() {
        "" => layer.snapshot.as_str(),
        digest => digest,
    };
    let state = match layer.health() {
        health @ (Health::Broken | Health::Forged) => health.word(),
        Health::Healthy | Health::Unspecified => layer.state().word(),
    };
    let cells = [
        style.digest(name),
        layer
            .size_bytes
            .map(|size| BinaryBytes(size).to_string())
            .unwrap_or_default(),
        state.to_owned(),
        layer
            .fetched_percent()
            .map(|percent| format!("{percent:.1} %"))
            .unwrap_or_default(),
        note(layer),
    ];
    cells.map(|cell| printable(&cell).into_owned())
}

fn note(layer: &Layer) -> String {
    let why = match (&layer.reason_code, &layer.reason) {
        (Some(code), Some(reason)) => Some(format!("{code}: {reason}")),
        (code, reason) => code.clone().or_else(|| reason.clone()),
    };
    let error = layer.error.as_ref().map(|error| format!("error: {error}"));
    let parts: Vec<String> = why.into_iter().chain(error).collect();
    parts.join("; ")
}

/// The two largest units.
pub(super) fn uptime(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use soci_status::api::{
        Counts, Daemon, Holder, LayerState, LayerStore, PlayingProfile, Registry, RegistryHost,
        Severed,
    };

    use super::*;

    fn digest(byte: char) -> String {
        format!("sha256:{}", byte.to_string().repeat(64))
    }

    fn layer(byte: char, state: LayerState) -> Layer {
        Layer {
            digest: digest(byte),
            state: state.into(),
            health: Health::Healthy.into(),
            size_bytes: Some(30_567_890),
            snapshot: format!("k8s.io/1/{}", digest(byte)),
            snapshot_id: 4,
            ..Layer::default()
        }
    }

    fn status() -> GetResponse {
        let lazy = Layer {
            fetched_bytes: Some(8_388_608),
            mountpoint: Some("/root/snapshotter/snapshots/4/fs".to_owned()),
            namespace: Some("k8s.io".to_owned()),
            ..layer('a', LayerState::Lazy)
        };
        let broken = Layer {
            health: Health::Broken.into(),
            reason_code: Some("failed".to_owned()),
            reason: Some("its FUSE connection was aborted".to_owned()),
            error: Some("span 3 cannot be fetched:\nstatus 503".to_owned()),
            ..lazy.clone()
        };
        let deferred = Layer {
            size_bytes: Some(900),
            reason_code: Some("no-ztoc".to_owned()),
            reason: Some("the SOCI index has no zTOC for this layer".to_owned()),
            ..layer('b', LayerState::Deferred)
        };
        let unnamed = Layer {
            digest: String::new(),
            size_bytes: None,
            reason_code: Some("missing-label".to_owned()),
            reason: Some("a label is missing".to_owned()),
            ..layer('c', LayerState::Deferred)
        };
        GetResponse {
            daemon: Some(Daemon {
                version: "v1.2.3".to_owned(),
                revision: "0123456789abcdef".to_owned(),
                pid: 42,
                uptime_seconds: 11_525,
                root: "/var/lib/soci-snapshotter-grpc".to_owned(),
                server_pid: 43,
            }),
            holder: Some(Holder {
                pid: 41,
                connections: 2,
                abandon_after_seconds: 600,
            }),
            store: Some(LayerStore {
                size_bytes: 123_456_789,
                limit_bytes: Some(10 << 30),
                unpacked_bytes: 0,
                evicted_bytes: 0,
                spans: 30,
                layers: 2,
            }),
            counts: Some(Counts {
                lazy: 2,
                local: 0,
                deferred: 2,
                broken: 1,
            }),
            images: vec![
                Image {
                    layers: vec![unnamed],
                    ..Image::default()
                },
                Image {
                    reference: "registry.example/app:1".to_owned(),
                    manifest_digest: digest('d'),
                    index_digest: Some(digest('e')),
                    layers: vec![lazy, broken, deferred],
                    complete: false,
                    lazy_bytes: 61_135_780,
                    stored_bytes: 16_777_216,
                    bytes_per_second: 3 << 20,
                    fill: "filling".to_owned(),
                    error: Some("cannot store its SOCI index: no space to\nwrite it".to_owned()),
                },
            ],
            profiles: Some(Profiles {
                enabled: true,
                stored: 3,
                stored_bytes: 12_345,
                recorded: 2,
                played: 4,
                stopped: 1,
                fetched_bytes: 526 << 20,
                used_bytes: 500 << 20,
                playing: vec![PlayingProfile {
                    reference: "registry.example/app:1".to_owned(),
                    manifest_digest: digest('d'),
                    origin: "index".to_owned(),
                    spans: 324,
                    fetched_bytes: 26 << 20,
                    used_bytes: 5 << 20,
                    held: true,
                    ended: false,
                }],
            }),
            severed: vec![Severed {
                snapshot: "k8s.io/9/web".to_owned(),
                snapshot_id: 9,
                reason: "the holder and the daemon died together".to_owned(),
                since: 1_700_000_000,
            }],
            pulls: vec![Pull {
                reference: "registry.example/eager:1".to_owned(),
                manifest_digest: digest('f'),
                namespace: "k8s.io".to_owned(),
                elapsed_milliseconds: 3_100,
                bytes_per_second: 250 << 20,
                layers: vec![PulledLayer {
                    digest: digest('1'),
                    size_bytes: 3 << 30,
                    downloaded_bytes: 800 << 20,
                    unpacked_bytes: 1500 << 20,
                    state: "unpacking".to_owned(),
                }],
            }],
            registries: vec![Registry {
                name: "registry.example".to_owned(),
                hosts: vec![
                    RegistryHost {
                        url: "http://mirror.example/v2".to_owned(),
                        capabilities: vec!["pull".to_owned(), "resolve".to_owned()],
                        failures: 2,
                        asked_last_for_ms: Some(1_900),
                    },
                    RegistryHost {
                        url: "https://registry.example/v2".to_owned(),
                        capabilities: vec!["pull".to_owned()],
                        failures: 0,
                        asked_last_for_ms: None,
                    },
                ],
                error: Some("cannot use hosts.toml: line 3: what".to_owned()),
            }],
            hosts_folders: vec!["/etc/containerd/certs.d".to_owned()],
        }
    }

    #[test]
    fn the_table_shows_every_layer_with_state_share_and_why() {
        insta::assert_snapshot!(render(&status(), Style::Programs).as_str());
    }

    #[test]
    fn the_json_has_everything_and_says_nothing_of_what_is_unknown() {
        insta::assert_json_snapshot!(status());
    }

    #[test]
    fn an_empty_answer_of_another_version_is_no_failure() {
        assert_eq!(render(&GetResponse::default(), Style::People).as_str(), "");
    }

    #[test]
    fn every_state_of_filling_has_a_sentence() {
        let line = |fill: &str| {
            let image = Image {
                fill: fill.to_owned(),
                lazy_bytes: 200,
                stored_bytes: 50,
                ..Image::default()
            };
            stored_line(&image)
        };
        assert_eq!(line(""), None, "an older daemon says nothing");
        let words = [
            "filling",
            "waiting",
            "queued",
            "throttled",
            "failing",
            "no-room",
            "off",
        ];
        for word in words {
            let text = line(word).unwrap();
            assert!(text.contains("25.0 % (50 B of 200 B), "), "{text}");
        }
        assert!(line("complete").unwrap().contains("no more"));
    }

    #[test]
    fn times_have_two_units() {
        let shown = [7, 67, 3_661, 90_061].map(uptime);
        assert_eq!(shown, ["7s", "1m7s", "1h1m", "1d1h"]);
    }

    #[test]
    fn what_others_have_named_is_printed_as_a_terminal_does_not_obey_it() {
        const HOSTILE: &str = "x\u{1b}c\nsoci: all is well\u{202e}\u{9b}31m";
        const SHOWN: &str = r"x\u{1b}c\nsoci: all is well\u{202e}\u{9b}31m";
        let mut status = status();
        let mut texts = Vec::new();
        for image in &mut status.images {
            texts.extend([&mut image.reference, &mut image.manifest_digest]);
            texts.push(image.error.get_or_insert_default());
            for layer in &mut image.layers {
                texts.extend([&mut layer.digest, &mut layer.snapshot]);
                let given = [
                    &mut layer.reason_code,
                    &mut layer.reason,
                    &mut layer.error,
                    &mut layer.mountpoint,
                    &mut layer.namespace,
                ];
                texts.extend(given.map(Option::get_or_insert_default));
            }
        }
        for severed in &mut status.severed {
            texts.extend([&mut severed.snapshot, &mut severed.reason]);
        }
        for registry in &mut status.registries {
            texts.push(&mut registry.name);
            texts.push(registry.error.get_or_insert_default());
            texts.extend(registry.hosts.iter_mut().map(|host| &mut host.url));
        }
        texts.extend(&mut status.hosts_folders);
        let pulls = Pull {
            layers: vec![PulledLayer::default()],
            ..Pull::default()
        };
        status.pulls.push(pulls);
        for pull in &mut status.pulls {
            texts.extend([&mut pull.reference, &mut pull.manifest_digest]);
            for layer in &mut pull.layers {
                texts.extend([&mut layer.digest, &mut layer.state]);
            }
        }
        texts.into_iter().for_each(|text| text.push_str(HOSTILE));
        let page = render(&status, Style::Programs);
        for line in page.as_str().lines() {
            assert!(line.chars().all(soci_errors::is_printable), "{line:?}");
            assert!(!line.starts_with("soci: all is well"), "{line}");
        }
        assert!(
            page.as_str().matches(SHOWN).count() > 10,
            "{}",
            page.as_str()
        );
    }
}
