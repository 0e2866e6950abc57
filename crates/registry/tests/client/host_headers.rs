//! Headers for one server: it gets them with every request, no other host does, nothing prints them.

use std::sync::Arc;

use bytes::Bytes;
use soci_oci::media_types;
use soci_registry::{
    BlobBody, BlobSource, Client, Deadline, HostHeaders, Mirror, NoCredentials, Origin,
    StaticCredentials,
};

use crate::fake::{
    Fake, Received, With, basic, config, descriptor, noise, read_everything, redirect, serve,
    status,
};

const SECRET: &str = "hunter2-s3cret";

fn headers(pairs: &[(&str, &str)]) -> HostHeaders {
    let mut headers = HostHeaders::default();
    for (name, value) in pairs {
        headers.append(name, value).unwrap();
    }
    headers
}

fn origin(fake: &Fake, pairs: &[(&str, &str)]) -> Origin {
    Origin {
        url: fake.url("").parse().unwrap(),
        headers: headers(pairs),
    }
}

fn values(request: &Received, name: &str) -> Vec<String> {
    let values = request.headers.get_all(name).iter();
    values
        .map(|value| value.to_str().unwrap().to_owned())
        .collect()
}

/// A registry that has everything.
fn answer(request: &Received, data: &Bytes) -> axum::response::Response {
    if request.path.contains("/blobs/") {
        serve(request, data)
    } else if request.path.contains("/referrers/") {
        status(200).body(r#"{"schemaVersion":2,"manifests":[]}"#)
    } else {
        status(200)
            .with("content-type", media_types::OCI_MANIFEST)
            .body("{}")
    }
}

#[tokio::test]
async fn a_server_gets_its_headers_with_every_request_and_others_do_not() {
    let data = noise(1000);
    let served = data.clone();
    let registry = Fake::start(move |_, request| {
        Some(match request.method.as_str() {
            "POST" => status(202).with("location", "/v2/a/b/blobs/uploads/1"),
            "PUT" => status(201),
            "HEAD" if request.path.contains("/blobs/") => status(404),
            _ => answer(request, &served),
        })
    })
    .await;
    let mirror = Fake::start(|_, _| Some(status(404))).await;
    let mut config = config();
    let name = registry.host();
    let own = [
        ("X-Key", SECRET),
        ("X-Team", "a"),
        ("X-Team", "b"),
        ("User-Agent", "mine"),
    ];
    config.origins.insert(name.clone(), origin(&registry, &own));
    config.hosts.insert(
        name,
        vec![Mirror {
            host: mirror.host(),
            insecure: true,
            request_timeout: None,
            headers: headers(&[("X-Mirror", "hunter3")]),
        }],
    );
    let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
    let reference = registry.reference("a/b:t");
    read_everything(&client, &reference, &data).await;
    let body = BlobBody::from(data.clone());
    client
        .push_blob(&reference, &descriptor(&data), body, None, None)
        .await
        .unwrap();

    let requests = registry.requests();
    assert!(requests.iter().any(|request| request.method == "PUT"));
    assert!(requests.iter().any(|request| request.range().is_some()));
    for request in requests {
        assert_eq!(values(&request, "x-key"), [SECRET], "{}", request.path);
        assert_eq!(values(&request, "x-team"), ["a", "b"]);
        assert_eq!(values(&request, "user-agent"), ["mine"]);
        assert!(values(&request, "x-mirror").is_empty());
    }
    let requests = mirror.requests();
    assert!(requests.len() >= 3, "{}", requests.len());
    for request in requests {
        assert_eq!(
            values(&request, "x-mirror"),
            ["hunter3"],
            "{}",
            request.path
        );
        assert!(values(&request, "x-key").is_empty());
        assert!(values(&request, "user-agent")[0].starts_with("soci-rs/"));
    }
}

#[tokio::test]
async fn another_host_never_sees_a_servers_headers_not_even_its_token_service() {
    let data = noise(1000);
    let served = data.clone();
    let storage = Fake::start(move |_, request| Some(serve(request, &served))).await;
    let tokens = Fake::start(|_, _| Some(status(200).body(r#"{"token":"t"}"#))).await;
    let target = storage.url("/x?sig=1");
    let realm = tokens.url("/token");
    let registry = Fake::start(move |_, request| {
        Some(if request.header("authorization") == Some("Bearer t") {
            redirect(307, &target)
        } else {
            status(401).with("www-authenticate", &format!(r#"Bearer realm="{realm}""#))
        })
    })
    .await;
    let mut config = config();
    let own = [("X-Key", SECRET), ("Authorization", SECRET)];
    let at = origin(&registry, &own);
    config.origins.insert(registry.host(), at);
    let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
    let blob = client.blob(&registry.reference("a/b:t"), &descriptor(&data));
    for from in [0, 100] {
        blob.read_range(from..from + 10, Deadline::far())
            .await
            .unwrap();
    }
    let seen = registry.requests();
    assert_eq!(values(&seen[0], "authorization"), [SECRET]);
    // What the registry requested takes the place of what was sent unasked.
    assert_eq!(values(&seen[1], "authorization"), ["Bearer t"]);
    assert!(
        seen.iter()
            .all(|request| values(request, "x-key") == [SECRET])
    );
    assert_eq!(storage.requests().len(), 2);
    assert_eq!(tokens.requests().len(), 1);
    for request in storage.requests().iter().chain(&tokens.requests()) {
        let text = format!("{:?} {}", request.headers, request.query);
        assert!(!text.contains(SECRET), "{text}");
        assert!(!request.headers.contains_key("authorization"));
    }
}

#[tokio::test]
async fn a_servers_own_token_service_gets_its_headers() {
    let data = noise(10);
    let served = data.clone();
    let registry = Fake::start(move |_, request| {
        let host = request.header("host").unwrap();
        Some(if request.path == "/token" {
            status(200).body(r#"{"token":"t"}"#)
        } else if request.header("authorization") == Some("Bearer t") {
            serve(request, &served)
        } else {
            let challenge = format!(r#"Bearer realm="http://{host}/token""#);
            status(401).with("www-authenticate", &challenge)
        })
    })
    .await;
    let mut config = config();
    let at = origin(&registry, &[("X-Key", SECRET)]);
    config.origins.insert(registry.host(), at);
    let credentials = StaticCredentials::new(registry.host(), basic("me", "password"));
    let client = Client::new(config, Arc::new(credentials)).unwrap();
    client
        .blob_bytes(&registry.reference("a/b:t"), &descriptor(&data))
        .await
        .unwrap();
    let requests = registry.requests();
    assert!(requests.iter().any(|request| request.path == "/token"));
    for request in requests {
        assert_eq!(values(&request, "x-key"), [SECRET], "{}", request.path);
    }
}

#[tokio::test]
async fn no_error_and_no_debug_output_shows_a_header_even_if_the_server_repeats_it() {
    for token in [false, true] {
        let registry = Fake::start(move |_, request| {
            let host = request.header("host").unwrap();
            let echo = format!("refused: {:?}", values(request, "x-key"));
            Some(if token && request.path != "/token" {
                let challenge = format!(r#"Bearer realm="http://{host}/token""#);
                status(401).with("www-authenticate", &challenge)
            } else {
                status(403).body(echo)
            })
        })
        .await;
        let mut config = config();
        let at = origin(&registry, &[("X-Key", &format!("Key {SECRET}"))]);
        config.origins.insert(registry.host(), at);
        assert!(!format!("{config:?}").contains(SECRET));
        let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
        let reference = registry.reference("a/b:t");
        let error = client.manifest(&reference, "t").await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("refused") && !text.contains(SECRET), "{text}");
    }
}
