//! `soci index`, `ztoc`, `prefetch` and `rebuild-db` over both content stores, against a real
//! containerd. Needs root.

use crate::support::{Bench, golden, lines};
use serde_json::Value;
use soci_testkit::Content;

const STORES: [&str; 2] = ["containerd", "soci"];
const INDEXING: [&str; 4] = ["--span-size", "262144", "--min-layer-size", "100000"];

fn create(bench: &Bench, store: &str, more: &[&str], reference: &str) -> Vec<String> {
    let arguments = [
        &["--content-store", store, "create"],
        &INDEXING[..],
        more,
        &[reference],
    ];
    lines(&bench.ok(&arguments.concat()))
}

#[test]
fn what_create_made_is_listed_shown_and_removed() {
    for store in STORES {
        let bench = Bench::start();
        let image = bench.image();
        let said = create(&bench, store, &["--prefetch-file", "/bin/busybox"], &image);
        let soci =
            |arguments: &[&str]| bench.ok(&[&["--content-store", store], arguments].concat());
        let table = soci(&["index", "ls"]);
        let mut rows = table.lines();
        let header = rows.next().unwrap();
        let names: Vec<&str> = header
            .split("  ")
            .map(str::trim)
            .filter(|n| !n.is_empty())
            .collect();
        assert_eq!(
            names,
            [
                "DIGEST",
                "SIZE",
                "IMAGE REF",
                "PLATFORM",
                "MEDIA TYPE",
                "MANIFEST VERSION",
                "CREATED"
            ]
        );
        let row: Vec<&str> = rows.next().unwrap().split_whitespace().collect();
        let [index, size, name, platform, media_type, version, _, ago] = row[..] else {
            panic!("{row:?}")
        };
        assert_eq!(
            (name, platform, media_type, version, ago),
            (
                image.as_str(),
                soci_oci::Platform::host().to_string().as_str(),
                "application/vnd.oci.image.manifest.v1+json",
                "v1",
                "ago"
            )
        );
        assert!(rows.next().is_none(), "{table}");
        for filter in [
            &["--ref", image.as_str()][..],
            &["--platform", platform],
            &["-p", platform],
        ] {
            assert_eq!(
                lines(&soci(&[&["index", "list", "-q"], filter].concat())),
                [index]
            );
        }
        assert_eq!(
            soci(&["index", "list", "-q", "--platform", "linux/s390x"]),
            ""
        );
        let json: Value = serde_json::from_str(&soci(&["index", "list", "--json"])).unwrap();
        assert_eq!(json[0]["digest"], index);

        let info = soci(&["index", "info", index]);
        let parsed: soci_oci::Manifest = serde_json::from_str(&info).unwrap();
        let bytes = soci_oci::json::to_vec(&parsed).unwrap();
        assert_eq!(soci_oci::Digest::of(&bytes).to_string(), index);
        assert_eq!(bytes.len().to_string(), size);

        let ztocs = lines(&soci(&["ztoc", "list", "--quiet", "--image-ref", &image]));
        assert_eq!(ztocs.len(), 2, "{ztocs:?}");
        let table = soci(&["ztoc", "ls"]);
        assert!(
            table.starts_with("DIGEST  ") && table.lines().count() == 3,
            "{table}"
        );
        let one = soci(&["ztoc", "list", "--ztoc-digest", &ztocs[0]]);
        assert_eq!(one.lines().count(), 2, "{one}");
        for ztoc in &ztocs {
            assert!(
                said.iter()
                    .any(|line| line.ends_with(&format!(" -> ztoc {ztoc}"))),
                "{said:?}"
            );
            let info: Value = serde_json::from_str(&soci(&["ztoc", "info", ztoc])).unwrap();
            assert_eq!(info["version"], "0.9");
            assert_eq!(info["span_size"], 262_144);
            if info["files"]
                .as_array()
                .unwrap()
                .iter()
                .any(|f| f["filename"] == "data/noise")
            {
                let noise = Content::Noise {
                    seed: 1,
                    length: 3_000_000,
                }
                .to_vec();
                let out = bench.run(&[
                    "--content-store",
                    store,
                    "ztoc",
                    "get-file",
                    ztoc,
                    "data/noise",
                ]);
                assert!(out.status.success() && out.stdout == noise);
                let path = bench.root.path().join("noise");
                let to = path.to_str().unwrap();
                soci(&["ztoc", "get-file", "-o", to, ztoc, "/data/noise"]);
                assert!(std::fs::read(&path).unwrap() == noise);
            }
        }

        let prefetch: Value = serde_json::from_str(&soci(&["prefetch", "list", "--json"])).unwrap();
        let artifact = prefetch[0]["Digest"].as_str().unwrap();
        let spans = prefetch[0]["TotalSpans"].as_i64().unwrap();
        assert!(spans > 0, "{prefetch}");
        let table = soci(&["prefetch", "ls"]);
        assert!(
            table.starts_with("DIGEST  ") && table.contains(artifact),
            "{table}"
        );
        let info = soci(&["prefetch", "info", artifact]);
        assert!(
            info.contains(&format!("Total spans to prefetch: {spans}")),
            "{info}"
        );
        assert!(soci(&["prefetch", "info", "--json", artifact]).contains("\"prefetch_spans\""));

        assert_eq!(soci(&["index", "rm", index]), "");
        assert_eq!(soci(&["index", "list", "-q"]), "");
        bench
            .ctr()
            .output(["content", "prune", "references"])
            .unwrap();
        soci(&["rebuild-db"]);
        for group in ["index", "ztoc"] {
            assert_eq!(soci(&[group, "list", "-q"]), "", "{store} {group}");
        }
        assert_eq!(soci(&["prefetch", "list", "--json"]), "null\n");
    }
}

#[test]
fn digests_of_the_wrong_kind_or_of_nothing_are_distinguished() {
    let bench = Bench::start();
    let image = bench.image();
    create(&bench, "containerd", &[], &image);
    let index = lines(&bench.ok(&["index", "list", "-q"])).remove(0);
    let ztoc = lines(&bench.ok(&["ztoc", "list", "-q"])).remove(0);
    let nothing = soci_oci::Digest::of(b"nothing").to_string();
    for (arguments, reason) in [
        (vec!["index", "info", ztoc.as_str()], "soci ztoc info"),
        (vec!["ztoc", "info", &index], "soci index info"),
        (vec!["prefetch", "info", &index], "not a prefetch artifact"),
        (vec!["index", "info", &nothing], "not found"),
        (vec!["ztoc", "info", &nothing], "not found"),
        (vec!["prefetch", "info", &nothing], "not found"),
        (
            vec!["index", "rm", &ztoc],
            "does not correspond to an index",
        ),
        (vec!["index", "rm", &nothing], "not found"),
        (vec!["index", "rm", "--ref", &image, &index], "not both"),
        (
            vec!["ztoc", "get-file", &ztoc, "no/such/file"],
            "not found in the layer",
        ),
        (vec!["ztoc", "get-file", &ztoc, "bin"], "not a regular file"),
        (vec!["ztoc", "get-file", &index, "bin"], "not a zTOC"),
        (
            vec![
                "ztoc",
                "list",
                "--image-ref",
                &image,
                "--ztoc-digest",
                &nothing,
            ],
            "does not belong",
        ),
        (
            vec!["index", "list", "--ref", "localhost/none:1"],
            "not found",
        ),
        (vec!["index", "info", "nonsense"], "sha256"),
    ] {
        let told = bench.run(&arguments);
        assert_eq!(told.status.code(), Some(1), "{arguments:?}: {told:?}");
        let text = String::from_utf8(told.stderr).unwrap();
        assert!(
            text.starts_with("soci: ") && text.contains(reason),
            "{arguments:?}: {text}"
        );
    }
    // Nothing was removed by the refused removals.
    assert_eq!(lines(&bench.ok(&["index", "list", "-q"])), [index]);
    bench.ok(&["index", "remove", "--ref", &image]);
    assert_eq!(bench.ok(&["index", "list", "-q"]), "");
}

#[test]
fn existing_ztocs_are_used_again_unless_forced_or_of_another_span_size() {
    for store in STORES {
        let bench = Bench::start();
        let image = bench.image();
        let first = create(&bench, store, &[], &image);
        assert!(
            first.iter().all(|line| !line.contains("already exists")),
            "{first:?}"
        );
        let second = create(&bench, store, &[], &image);
        let again = |said: &[String]| {
            said.iter()
                .filter(|line| line.ends_with(" (already exists)"))
                .count()
        };
        assert_eq!(again(&second), 2, "{second:?}");
        assert_eq!(again(&create(&bench, store, &["--force"], &image)), 0);
        assert_eq!(
            again(&create(&bench, store, &["--span-size", "131072"], &image)),
            0
        );
        // A zTOC whose bytes are gone is built again, whatever the database says.
        let index = lines(&bench.ok(&["--content-store", store, "index", "list", "-q"]));
        assert_eq!(index.len(), 2, "{index:?}");
        // containerd's collector takes them once the image has another index; the snapshotter's
        // own store is emptied here.
        match store {
            "soci" => std::fs::remove_dir_all(bench.soci_root().join("content")).unwrap(),
            _ => bench.collect_garbage(),
        }
        assert_eq!(again(&create(&bench, store, &[], &image)), 0);
        // What create made, convert uses.
        let said = bench.ok(&[
            "--content-store",
            store,
            "convert",
            "--span-size",
            "262144",
            "--min-layer-size",
            "100000",
            &image,
            &bench.registry.reference("app:soci"),
        ]);
        assert_eq!(again(&lines(&said)), 2, "{said}");
    }
}

#[test]
fn the_database_is_rebuilt_from_the_content_store() {
    for store in STORES {
        let bench = Bench::start();
        let image = bench.image();
        create(&bench, store, &["--prefetch-file", "/bin/busybox"], &image);
        bench.ok(&[
            "--content-store",
            store,
            "convert",
            "--span-size",
            "262144",
            "--min-layer-size",
            "100000",
            &image,
            &bench.registry.reference("app:soci"),
        ]);
        let all = || -> Vec<Vec<String>> {
            ["index", "ztoc"]
                .map(|group| {
                    let mut rows =
                        lines(&bench.ok(&["--content-store", store, group, "list", "-q"]));
                    rows.sort();
                    rows
                })
                .to_vec()
        };
        let table = || {
            let text = bench.ok(&["--content-store", store, "index", "list", "--json"]);
            let mut rows: Vec<Value> = serde_json::from_str(&text).unwrap();
            rows.iter_mut()
                .for_each(|row| row["createdAt"] = Value::Null);
            rows.sort_by_key(ToString::to_string);
            rows
        };
        let (before, rows) = (all(), table());
        assert_eq!(rows.len(), 2, "{rows:?}");
        for entry in std::fs::read_dir(bench.soci_root()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::remove_file(path).unwrap();
            }
        }
        assert!(all().iter().all(Vec::is_empty));
        bench.ok(&["--content-store", store, "rebuild-db"]);
        assert_eq!((all(), table()), (before, rows), "{store}");
        let said = bench.ok(&["--content-store", store, "rebuild-db"]);
        assert!(said.contains("0 added, 0 removed"), "{said}");
    }
}

#[test]
fn the_database_of_an_earlier_version_is_taken_over() {
    let bench = Bench::start();
    std::fs::create_dir_all(bench.soci_root()).unwrap();
    let old = golden("v0.15-root").join("artifacts.db");
    std::fs::copy(&old, bench.soci_root().join("artifacts.db")).unwrap();
    let index = "sha256:a848a511bb12df9e3b0312d761aecb050d8ef6da41a10d8cac9312a9b973d16c";
    assert_eq!(lines(&bench.ok(&["index", "list", "-q"])), [index]);
    assert_eq!(lines(&bench.ok(&["ztoc", "list", "-q"])).len(), 2);
    // Its artifacts come along as the content store of the same root, and are shown and pushed.
    let content = bench.soci_root().join("content");
    std::fs::create_dir_all(content.join("blobs/sha256")).unwrap();
    std::fs::write(
        content.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    for blob in std::fs::read_dir(golden("kinds").join("soci-v1/blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        std::fs::copy(
            blob.path(),
            content.join("blobs/sha256").join(blob.file_name()),
        )
        .unwrap();
    }
    let info = bench.ok(&["--content-store", "soci", "index", "info", index]);
    assert!(info.contains("AWS SOCI CLI"), "{info}");
    for ztoc in lines(&bench.ok(&["ztoc", "list", "-q"])) {
        let hex = ztoc.strip_prefix("sha256:").unwrap();
        let said = std::fs::read_to_string(golden("kinds").join(format!("ztoc-info/{hex}.json")));
        let ours = bench.ok(&["--content-store", "soci", "ztoc", "info", &ztoc]);
        assert_eq!(ours.trim_end(), said.unwrap().trim_end());
    }
    let image = bench.import(&golden("kinds").join("image"), "kinds", "1");
    let said = bench.ok(&["--content-store", "soci", "push", &image]);
    assert!(
        said.contains(&format!(
            "successfully pushed artifact with digest: {index}"
        )),
        "{said}"
    );
    // zTOCs of the earlier version are used again.
    let said = create_kinds(&bench, &image);
    assert_eq!(said.matches("(already exists)").count(), 2, "{said}");
}

fn create_kinds(bench: &Bench, image: &str) -> String {
    bench.ok(&[
        "--content-store",
        "soci",
        "create",
        "--min-layer-size",
        "0",
        "--span-size",
        "131072",
        image,
    ])
}
