//! Events as registries send them, and what is not one.

use serde_json::{Value, json};
use soci_index_builder::Push;
use soci_index_builder::event::{Reported, parse};
use soci_oci::Digest;

fn digest() -> Digest {
    Digest::of(b"image")
}

fn read(event: &Value) -> Vec<Reported> {
    parse(event.to_string().as_bytes()).unwrap()
}

fn refused(event: &Value) -> String {
    parse(event.to_string().as_bytes()).unwrap_err().to_string()
}

fn pushes(reported: Vec<Reported>) -> Vec<Push> {
    let push = |one| match one {
        Reported::Push(push) => Some(push),
        Reported::Other(_) => None,
    };
    reported.into_iter().filter_map(push).collect()
}

/// The event of the ECR user guide.
fn ecr() -> Value {
    json!({
        "version": "0",
        "id": "13cde686-328b-6117-af20-0e5566167482",
        "detail-type": "ECR Image Action",
        "source": "aws.ecr",
        "account": "123456789012",
        "time": "2019-11-16T01:54:34Z",
        "region": "us-west-2",
        "resources": [],
        "detail": {
            "result": "SUCCESS",
            "repository-name": "my-repository/name",
            "image-digest": digest().to_string(),
            "action-type": "PUSH",
            "image-tag": "latest"
        }
    })
}

#[test]
fn an_ecr_image_action_is_the_push_of_an_image_in_the_registry_of_its_account() {
    let push = pushes(read(&ecr())).remove(0);
    assert_eq!(
        push.to_string(),
        format!(
            "123456789012.dkr.ecr.us-west-2.amazonaws.com/my-repository/name:latest@{}",
            digest()
        )
    );
    assert_eq!(
        push.event.as_deref(),
        Some("13cde686-328b-6117-af20-0e5566167482")
    );
    let mut china = ecr();
    china["region"] = json!("cn-north-1");
    let push = pushes(read(&china)).remove(0);
    assert_eq!(
        push.registry,
        "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn"
    );
}

#[test]
fn other_events_of_event_bridge_are_reported_as_such() {
    let mut deleted = ecr();
    deleted["detail"]["action-type"] = json!("DELETE");
    let mut failed = ecr();
    failed["detail"]["result"] = json!("FAILURE");
    let mut scan = ecr();
    scan["detail-type"] = json!("ECR Image Scan");
    scan["detail"] = json!({"scan-status": "COMPLETE"});
    let mut other = ecr();
    other["source"] = json!("aws.s3");
    for event in [deleted, failed, scan, other] {
        assert!(matches!(read(&event)[..], [Reported::Other(_)]), "{event}");
    }
}

#[test]
fn an_ecr_event_that_lacks_a_part_or_names_no_image_is_refused_with_the_part() {
    for (path, value, named) in [
        ("/account", json!("12345"), "account"),
        ("/region", json!("us west"), "region"),
        ("/region", json!("evil.example/x"), "region"),
        ("/detail/repository-name", Value::Null, "repository-name"),
        ("/detail/repository-name", json!("UPPER"), "UPPER"),
        ("/detail/repository-name", json!("a@sha256:0"), "a@sha256:0"),
        ("/detail/image-digest", json!("sha256:xyz"), "sha256:xyz"),
        ("/detail/image-tag", json!("a/b"), "a/b"),
        ("/detail", json!(1), "detail"),
    ] {
        let mut event = ecr();
        *event.pointer_mut(path).unwrap() = value;
        let error = refused(&event);
        assert!(error.contains(named), "{path}: {error}");
    }
}

#[test]
fn an_envelope_of_a_distribution_registry_reports_manifests_and_not_blobs() {
    let event = |media_type: &str, action: &str, tag: Option<&str>| {
        json!({
            "id": format!("{media_type} {action}"),
            "timestamp": "2026-01-02T03:04:05Z",
            "action": action,
            "target": {
                "mediaType": media_type, "size": 708, "digest": digest().to_string(), "length": 708,
                "repository": "team/app", "url": "http://registry.example/v2/…", "tag": tag
            },
            "request": {"id": "x", "addr": "192.0.2.1", "host": "registry.example:5000", "method": "PUT"},
            "source": {"addr": "registry:5000"}
        })
    };
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let reported = read(&json!({"events": [
        event("application/octet-stream", "push", None),
        event(manifest, "pull", Some("1")),
        event(manifest, "push", None),
        event(list, "push", Some("1")),
    ]}));
    assert_eq!(reported.len(), 4);
    let pushes = pushes(reported);
    assert_eq!(pushes.len(), 2);
    assert_eq!(pushes[0].tag, None);
    assert_eq!(pushes[1].tagged_name(), "registry.example:5000/team/app:1");
    assert_eq!(pushes[1].digest, Some(digest()));
    let mut nameless = event(manifest, "push", Some("1"));
    nameless["request"] = json!({});
    assert!(refused(&json!({"events": [nameless]})).contains("request.host"));
}

#[test]
fn both_formats_of_harbor_report_the_pushed_artifacts() {
    let data = json!({
        "resources": [{
            "digest": digest().to_string(), "tag": "2.1",
            "resource_url": "harbor.example.com/library/app:2.1"
        }],
        "repository": {
            "date_created": 1, "name": "app", "namespace": "library",
            "repo_full_name": "library/app", "repo_type": "public"
        }
    });
    let own = json!({
        "type": "PUSH_ARTIFACT", "occur_at": 1_680_501_893, "operator": "robot", "event_data": data
    });
    let cloud_event = json!({
        "specversion": "1.0", "id": "66cb1d7b", "source": "/projects/1/webhook/policies/15",
        "type": "harbor.artifact.pushed", "datacontenttype": "application/json",
        "time": "2023-04-03T06:04:53Z", "operator": "robot", "data": data
    });
    for event in [&own, &cloud_event] {
        let push = pushes(read(event)).remove(0);
        assert_eq!(push.tagged_name(), "harbor.example.com/library/app:2.1");
        assert_eq!(push.digest, Some(digest()));
    }
    let mut untagged = own.clone();
    untagged["event_data"]["resources"][0]["tag"] = json!(digest().to_string());
    assert_eq!(pushes(read(&untagged))[0].tag, None);
    let mut pulled = own;
    pulled["type"] = json!("PULL_ARTIFACT");
    assert!(matches!(read(&pulled)[..], [Reported::Other(_)]));
}

#[test]
fn a_notification_of_quay_reports_each_updated_tag() {
    let event = |tags: Value| {
        json!({
            "name": "repository", "repository": "team/app", "namespace": "team",
            "docker_url": "quay.example/team/app", "homepage": "https://quay.example/…",
            "updated_tags": tags
        })
    };
    for tags in [json!(["1", "latest"]), json!({"1": "abc", "latest": "abc"})] {
        let pushes = pushes(read(&event(tags)));
        let names: Vec<String> = pushes.iter().map(Push::tagged_name).collect();
        assert_eq!(
            names,
            ["quay.example/team/app:1", "quay.example/team/app:latest"]
        );
        assert!(pushes.iter().all(|push| push.digest.is_none()));
    }
    let vulnerability = json!({"docker_url": "quay.example/team/app", "vulnerability": {}});
    assert!(matches!(read(&vulnerability)[..], [Reported::Other(_)]));
}

#[test]
fn a_message_that_is_not_an_event_is_refused_and_harms_nothing() {
    assert!(parse(b"").unwrap_err().to_string().contains("not JSON"));
    assert!(parse(b"\xff{").is_err());
    assert!(parse("[".repeat(100_000).as_bytes()).is_err());
    assert!(refused(&json!({})).contains("EventBridge"));
    assert!(refused(&json!({"events": 1})).contains("cannot read the event"));
    let long = "a".repeat(10_000);
    let error =
        refused(&json!({"docker_url": format!("quay.example/{long}"), "updated_tags": ["1"]}));
    assert!(
        error.contains("longer than") && error.len() < 200,
        "{error}"
    );
    let many = vec!["1"; 1001];
    assert!(
        refused(&json!({"docker_url": "quay.example/a", "updated_tags": many})).contains("1000")
    );
}

/// The fuzz target's seeds, which are an event of each kind, and what becomes of them byte by byte.
#[test]
fn the_seeds_of_the_fuzz_target_and_damaged_ones_keep_what_it_asserts() {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seed/push_event");
    let mut pushes = 0;
    for seed in std::fs::read_dir(seeds).unwrap() {
        let seed = std::fs::read(seed.unwrap().path()).unwrap();
        pushes += self::pushes(parse(&seed).unwrap()).len();
        soci_index_builder::fuzz::push_event(&seed);
        for at in 0..seed.len() {
            for byte in [b'"', b'/', b':', b'@', b'A', b'{', 0, 0xff] {
                let mut damaged = seed.clone();
                damaged[at] = byte;
                soci_index_builder::fuzz::push_event(&damaged);
            }
            soci_index_builder::fuzz::push_event(&seed[..at]);
        }
    }
    assert!(pushes >= 6, "{pushes}");
}
