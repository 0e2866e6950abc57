//! Basic, bearer tokens and identity tokens; what happens when they are refused or run out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::response::Response;
use bytes::Bytes;
use soci_oci::Reference;
use soci_registry::{
    BlobSource, Candidate, Credential, CredentialError, CredentialScope, Credentials, Deadline,
    ErrorKind, StaticCredentials,
};

use crate::fake::{
    Fake, Received, With, basic, client, client_with, descriptor, noise, pass, serve, status,
};

/// A registry that wants the bearer token `valid` from its own `/token`.
fn bearer(request: &Received, valid: &str, data: &Bytes) -> Response {
    if request.header("authorization") == Some(&format!("Bearer {valid}")) {
        return serve(request, data);
    }
    let host = request.header("host").unwrap();
    let challenge = format!(
        r#"Bearer realm="http://{host}/token",service="the registry",scope="repository:a/b:pull""#
    );
    status(401).with("www-authenticate", &challenge)
}

#[tokio::test]
async fn a_bearer_token_is_fetched_once_for_the_scope_and_used_again() {
    let data = noise(1000);
    let served = data.clone();
    let fake = Fake::start(move |_, request| {
        Some(if request.path == "/token" {
            status(200).body(r#"{"token":"t0ken","expires_in":300}"#)
        } else {
            bearer(request, "t0ken", &served)
        })
    })
    .await;
    let client = client_with(StaticCredentials::new(fake.host(), basic("me", "hunter2")));
    let blob = client.blob(&fake.reference("a/b:t"), &descriptor(&data));
    let reads = (0..4_u64).map(|n| blob.read_range(n * 100..n * 100 + 50, Deadline::far()));
    let reads = futures::future::join_all(reads).await;
    for (n, read) in reads.into_iter().enumerate() {
        assert_eq!(read.unwrap(), data.slice(n * 100..n * 100 + 50));
    }
    blob.read_range(0..9, Deadline::far()).await.unwrap();
    let requests = fake.requests();
    let tokens: Vec<_> = requests.iter().filter(|r| r.path == "/token").collect();
    assert_eq!(tokens.len(), 1, "single flight");
    assert_eq!(
        tokens[0].query,
        "service=the+registry&scope=repository%3Aa%2Fb%3Apull&account=me"
    );
    assert_eq!(
        tokens[0].header("authorization"),
        Some("Basic bWU6aHVudGVyMg==")
    );
    let last = requests.last().unwrap();
    assert_eq!(
        last.header("authorization"),
        Some("Bearer t0ken"),
        "sent without being asked"
    );
    let refused = requests
        .iter()
        .filter(|r| r.path != "/token" && r.header("authorization").is_none())
        .count();
    assert!(refused <= 4);
}

#[tokio::test]
async fn anonymous_tokens_are_fetched_without_credentials() {
    let data = noise(10);
    let served = data.clone();
    let fake = Fake::start(move |_, request| {
        Some(if request.path == "/token" {
            status(200).body(r#"{"access_token":"anon"}"#)
        } else {
            bearer(request, "anon", &served)
        })
    })
    .await;
    let got = client()
        .blob_bytes(&fake.reference("a/b:t"), &descriptor(&data))
        .await
        .unwrap();
    assert_eq!(got, data);
    let token = &fake.requests()[1];
    assert_eq!(token.header("authorization"), None);
    assert!(!token.query.contains("account"));
}

/// Looks its password up in a list that the test moves along.
struct Rotating(Arc<AtomicUsize>);

#[async_trait]
impl Credentials for Rotating {
    async fn candidates(
        &self,
        _: &str,
        reference: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        assert!(reference.is_some());
        let password = ["one", "two"][self.0.load(Ordering::SeqCst)];
        Ok(vec![Candidate::new(
            basic("me", password),
            CredentialScope::Host,
        )])
    }
}

#[tokio::test]
async fn a_token_that_is_refused_later_is_replaced_with_fresh_credentials() {
    let data = noise(1000);
    let served = data.clone();
    let epoch = Arc::new(AtomicUsize::new(0));
    let now = Arc::clone(&epoch);
    let fake = Fake::start(move |_, request| {
        let epoch = now.load(Ordering::SeqCst);
        let valid = format!("token{epoch}");
        if request.path != "/token" {
            return Some(bearer(request, &valid, &served));
        }
        // me:one, then me:two.
        let password = ["Basic bWU6b25l", "Basic bWU6dHdv"][epoch];
        if request.header("authorization") != Some(password) {
            return Some(status(401));
        }
        Some(status(200).body(format!(r#"{{"token":"{valid}","expires_in":3600}}"#)))
    })
    .await;
    let client = client_with(Rotating(Arc::clone(&epoch)));
    let blob = client.blob(&fake.reference("a/b:t"), &descriptor(&data));
    assert_eq!(
        blob.read_range(0..10, Deadline::far()).await.unwrap(),
        data.slice(0..10)
    );
    epoch.store(1, Ordering::SeqCst);
    assert_eq!(
        blob.read_range(10..20, Deadline::far()).await.unwrap(),
        data.slice(10..20)
    );
    let requests = fake.requests();
    assert_eq!(requests.iter().filter(|r| r.path == "/token").count(), 2);
}

#[tokio::test]
async fn a_new_token_that_is_called_invalid_is_replaced_once() {
    let data = noise(100);
    // The server of the registry that is asked first knows a token later than its token server.
    for (unknown, error, tokens) in [
        (1, "invalid_token", 2),
        (2, "invalid_token", 2),
        (1, "insufficient_scope", 1),
    ] {
        let served = data.clone();
        let fake = Fake::start(move |number, request| {
            if request.path == "/token" {
                if request.header("authorization").is_none() {
                    return Some(status(401));
                }
                return Some(status(200).body(format!(r#"{{"token":"t{number}"}}"#)));
            }
            let sent = request.header("authorization").unwrap_or_default();
            let valid = sent.strip_prefix("Bearer ").unwrap_or("none").to_owned();
            // Requests 0 and 1 are without a token and for one; the odd ones that follow are for tokens.
            if number > 0 && number <= 2 * unknown {
                let host = request.header("host").unwrap();
                let challenge = format!(r#"Bearer realm="http://{host}/token",error="{error}""#);
                return Some(status(401).with("www-authenticate", &challenge));
            }
            Some(bearer(request, &valid, &served))
        })
        .await;
        let client = client_with(StaticCredentials::new(fake.host(), basic("me", "hunter2")));
        let blob = client.blob(&fake.reference("a/b:t"), &descriptor(&data));
        let read = blob.read_range(0..10, Deadline::far()).await;
        let requests = fake.requests();
        let with_account = |request: &&Received| {
            request.path == "/token" && request.header("authorization").is_some()
        };
        assert_eq!(
            (requests.iter().filter(with_account).count(), read.is_ok()),
            (tokens, unknown == 1 && error == "invalid_token"),
            "{unknown} {error}: {read:?}"
        );
    }
}

#[tokio::test]
async fn an_expired_token_is_not_sent() {
    let data = noise(100);
    let served = data.clone();
    let fake = Fake::start(move |number, request| {
        if request.path == "/token" {
            let token = format!(r#"{{"token":"t{number}","expires_in":60}}"#);
            return Some(status(200).body(token));
        }
        let sent = request.header("authorization").unwrap_or_default();
        let valid = sent.strip_prefix("Bearer ").unwrap_or("none");
        Some(bearer(request, valid, &served))
    })
    .await;
    let blob = client().blob(&fake.reference("a/b:t"), &descriptor(&data));
    blob.read_range(0..10, Deadline::far()).await.unwrap();
    pass(Duration::from_secs(60)).await;
    blob.read_range(10..20, Deadline::far()).await.unwrap();
    let sent: Vec<_> = fake
        .requests()
        .iter()
        .map(|r| {
            (
                r.path == "/token",
                r.header("authorization").map(str::to_owned),
            )
        })
        .collect();
    let token = |text: &str| Some(text.to_owned());
    assert_eq!(
        sent,
        [
            (false, None),
            (true, None),
            (false, token("Bearer t1")),
            (true, None),
            (false, token("Bearer t3")),
        ]
    );
}

#[tokio::test]
async fn identity_tokens_are_traded_by_an_oauth2_post() {
    let data = noise(10);
    let served = data.clone();
    let fake = Fake::start(move |_, request| {
        Some(if request.path != "/token" {
            bearer(request, "traded", &served)
        } else if request.method == http::Method::POST {
            status(200).body(r#"{"access_token":"traded"}"#)
        } else {
            status(405)
        })
    })
    .await;
    let credential = Credential::IdentityToken("refresh/me".to_owned());
    let client = client_with(StaticCredentials::new(fake.host(), credential));
    client
        .blob_bytes(&fake.reference("a/b:t"), &descriptor(&data))
        .await
        .unwrap();
    let post = &fake.requests()[1];
    assert_eq!(
        post.body,
        "grant_type=refresh_token&refresh_token=refresh%2Fme&client_id=soci-rs\
         &service=the+registry&scope=repository%3Aa%2Fb%3Apull"
    );
    assert_eq!(post.header("authorization"), None);
}

#[tokio::test]
async fn a_token_server_that_takes_only_posts_gets_a_password_grant() {
    let data = noise(10);
    let served = data.clone();
    let fake = Fake::start(move |_, request| {
        Some(if request.path != "/token" {
            bearer(request, "posted", &served)
        } else if request.method == http::Method::POST {
            status(200).body(r#"{"access_token":"posted"}"#)
        } else {
            status(405)
        })
    })
    .await;
    let client = client_with(StaticCredentials::new(fake.host(), basic("me", "hunter2")));
    client
        .blob_bytes(&fake.reference("a/b:t"), &descriptor(&data))
        .await
        .unwrap();
    let body = String::from_utf8(fake.requests()[2].body.to_vec()).unwrap();
    assert!(
        body.starts_with("grant_type=password&username=me&password=hunter2&"),
        "{body}"
    );
}

#[tokio::test]
async fn basic_is_sent_after_a_challenge_and_then_at_once() {
    let data = noise(100);
    let served = data.clone();
    let fake = Fake::start(move |_, request| {
        Some(match request.header("authorization") {
            Some("Basic bWU6aHVudGVyMg==") => serve(request, &served),
            _ => status(401).with("www-authenticate", r#"Basic realm="x""#),
        })
    })
    .await;
    let client = client_with(StaticCredentials::new(fake.host(), basic("me", "hunter2")));
    let blob = client.blob(&fake.reference("a/b:t"), &descriptor(&data));
    blob.read_range(0..10, Deadline::far()).await.unwrap();
    blob.read_range(10..20, Deadline::far()).await.unwrap();
    let requests = fake.requests();
    let sent: Vec<bool> = requests
        .iter()
        .map(|r| r.headers.contains_key("authorization"))
        .collect();
    assert_eq!(sent, [false, true, true]);
}

#[tokio::test]
async fn a_kept_credential_that_has_expired_with_403_is_looked_up_again() {
    let data = noise(100);
    let served = data.clone();
    let epoch = Arc::new(AtomicUsize::new(0));
    let now = Arc::clone(&epoch);
    let fake = Fake::start(move |_, request| {
        // me:one, then me:two, then no credentials.
        let valid = ["Basic bWU6b25l", "Basic bWU6dHdv", "?"][now.load(Ordering::SeqCst)];
        Some(match request.header("authorization") {
            None => status(401).with("www-authenticate", "Basic realm=x"),
            Some(sent) if sent == valid => serve(request, &served),
            Some(_) => status(403),
        })
    })
    .await;
    let password = Arc::new(AtomicUsize::new(0));
    let client = client_with(Rotating(Arc::clone(&password)));
    let blob = client.blob(&fake.reference("a/b:t"), &descriptor(&data));
    blob.read_range(0..10, Deadline::far()).await.unwrap();
    epoch.store(1, Ordering::SeqCst);
    password.store(1, Ordering::SeqCst);
    assert_eq!(
        blob.read_range(10..20, Deadline::far()).await.unwrap(),
        data.slice(10..20)
    );
    epoch.store(2, Ordering::SeqCst);
    let before = fake.requests().len();
    let error = blob.read_range(10..20, Deadline::far()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden);
    assert!(
        fake.requests().len() <= before + 2,
        "the same password is not tried again"
    );
}

#[tokio::test]
async fn wrong_credentials_are_tried_once_and_reported_with_advice() {
    let fake = Fake::start(|_, request| {
        Some(if request.path == "/token" {
            status(200).body(r#"{"token":"useless"}"#)
        } else {
            let said =
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
            bearer(request, "another", &Bytes::new()).body(said)
        })
    })
    .await;
    let reference = fake.reference("a/b:t");
    let error = client().manifest(&reference, "t").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    let text = error.to_string();
    assert!(
        text.contains("UNAUTHORIZED: authentication required"),
        "{text}"
    );
    assert!(
        text.contains(&format!("docker login {}", fake.host())),
        "{text}"
    );
    assert_eq!(fake.requests().len(), 3);
}

#[tokio::test]
async fn credentials_are_not_sent_to_a_realm_that_is_no_http_url() {
    for realm in ["ftp://x/y", "nonsense", "file:///etc/passwd"] {
        let fake = Fake::start(move |_, _| {
            let challenge = format!(r#"Bearer realm="{realm}""#);
            Some(status(401).with("www-authenticate", &challenge))
        })
        .await;
        let client = client_with(StaticCredentials::new(fake.host(), basic("me", "hunter2")));
        let error = client.resolve(&fake.reference("a/b:t")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(
            fake.requests()
                .iter()
                .all(|r| !r.headers.contains_key("authorization"))
        );
    }
}

/// A keychain that does not open.
struct Failing;

#[async_trait]
impl Credentials for Failing {
    async fn candidates(
        &self,
        _: &str,
        _: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        Err(CredentialError::from_source(std::io::Error::other(
            "the keychain is locked",
        )))
    }
}

#[tokio::test]
async fn a_failing_place_of_credentials_is_an_error_that_names_the_host() {
    let fake =
        Fake::start(|_, _| Some(status(401).with("www-authenticate", "Basic realm=x"))).await;
    let error = client_with(Failing)
        .manifest(&fake.reference("a/b:t"), "t")
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot look up credentials for {}: the keychain is locked",
            fake.host()
        )
    );
}

/// Candidates for every host, in this order.
struct Several(Vec<Candidate>);

#[async_trait]
impl Credentials for Several {
    async fn candidates(
        &self,
        _: &str,
        _: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        Ok(self.0.clone())
    }
}

fn several(names: &[(&str, CredentialScope)]) -> Several {
    let candidate =
        |(name, scope): &(&str, CredentialScope)| Candidate::new(basic(name, "hunter2"), *scope);
    Several(names.iter().map(candidate).collect())
}

/// The user of a `Basic` header.
fn user_of(request: &Received) -> Option<String> {
    use base64::Engine as _;
    let encoded = request.header("authorization")?.strip_prefix("Basic ")?;
    let text = base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .unwrap();
    let text = String::from_utf8(text).unwrap();
    Some(text.split(':').next().unwrap().to_owned())
}

#[tokio::test]
async fn every_candidate_is_tried_and_what_worked_is_remembered_for_its_repository() {
    use CredentialScope::{Host, Image, Path};
    for refusal in [401, 403] {
        let data = noise(100);
        let served = data.clone();
        let fake = Fake::start(move |_, request| {
            // Each repository has a user of its own.
            let right = request.path.split('/').nth(2).map(str::to_owned);
            Some(match user_of(request) {
                None => status(401).with("www-authenticate", "Basic realm=x"),
                user if user == right => serve(request, &served),
                Some(_) => {
                    let challenge = "Basic realm=x";
                    status(refusal).with("www-authenticate", challenge)
                }
            })
        })
        .await;
        let client = client_with(several(&[
            ("host1", Host),
            ("usera", Host),
            ("deep", Path(9)),
            ("userb", Host),
            ("image", Image),
        ]));
        let read = async |repository: &str| {
            let before = fake.requests().len();
            let blob = client.blob(&fake.reference(repository), &descriptor(&data));
            let got = blob.read_range(1..9, Deadline::far()).await;
            let requests = fake.requests();
            let users: Vec<_> = requests[before..].iter().map(user_of).collect();
            let users = users.into_iter().map(Option::unwrap_or_default);
            (got, users.collect::<Vec<_>>())
        };
        let (got, users) = read("usera/x:t").await;
        assert_eq!(got.unwrap(), data.slice(1..9));
        // The most specific first.
        assert_eq!(users, ["", "image", "deep", "host1", "usera"]);
        let (got, users) = read("userb/x:t").await;
        assert_eq!(got.unwrap(), data.slice(1..9));
        assert_eq!(users.last().unwrap(), "userb");
        for repository in ["usera", "userb"] {
            let (got, users) = read(&format!("{repository}/x:t")).await;
            got.unwrap();
            assert_eq!(users, [repository]);
        }
        let (got, users) = read("other/x:t").await;
        let error = got.unwrap_err();
        assert_eq!(error.status(), Some(refusal), "{error}");
        assert_eq!(users.len(), 5, "{users:?}");
    }
}

/// The candidates of the first look-up, and those of each later one.
struct Growing(AtomicBool, [Several; 2]);

#[async_trait]
impl Credentials for Growing {
    async fn candidates(
        &self,
        host: &str,
        reference: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        let [first, later] = &self.1;
        match self.0.swap(true, Ordering::Relaxed) {
            false => first.candidates(host, reference).await,
            true => later.candidates(host, reference).await,
        }
    }
}

#[tokio::test]
async fn what_worked_comes_before_a_more_specific_candidate_that_appears_later() {
    use CredentialScope::{Host, Image};
    let data = noise(100);
    let served = data.clone();
    let fake = Fake::start(move |_, request| {
        Some(match user_of(request).as_deref() {
            Some("right") if request.method == "PUT" => status(201),
            Some("right") => serve(request, &served),
            _ => status(401).with("www-authenticate", "Basic realm=x"),
        })
    })
    .await;
    let candidates = [("right", Host), ("new", Image)];
    let client = client_with(Growing(
        false.into(),
        [several(&candidates[..1]), several(&candidates)],
    ));
    let reference = fake.reference("a/b:t");
    let blob = client.blob(&reference, &descriptor(&data));
    blob.read_range(1..9, Deadline::far()).await.unwrap();
    let before = fake.requests().len();
    // Another right, for which the candidates are looked up again.
    let manifest = Bytes::from_static(b"{}");
    client
        .push_manifest(&reference, "application/json", manifest)
        .await
        .unwrap();
    let users: Vec<_> = fake.requests()[before..].iter().map(user_of).collect();
    assert_eq!(users, [Some("right".to_owned())]);
}

#[tokio::test]
async fn a_wrong_password_neither_hides_a_right_one_nor_a_public_image() {
    let data = noise(100);
    for public in [false, true] {
        let served = data.clone();
        let fake = Fake::start(move |_, request| {
            if request.path != "/token" {
                return Some(bearer(request, "good", &served));
            }
            Some(match user_of(request).as_deref() {
                Some("right") if !public => status(200).body(r#"{"token":"good"}"#),
                None if public => status(200).body(r#"{"token":"good"}"#),
                _ => status(401).body(r#"{"details":"incorrect username or password"}"#),
            })
        })
        .await;
        let credentials = several(&[
            ("wrong", CredentialScope::Image),
            ("bad", CredentialScope::Host),
            ("right", CredentialScope::Host),
        ]);
        let client = client_with(credentials);
        let blob = client.blob(&fake.reference("a/b:t"), &descriptor(&data));
        let got = blob.read_range(1..9, Deadline::far()).await.unwrap();
        assert_eq!(got, data.slice(1..9));
    }
    let fake = Fake::start(move |_, request| {
        Some(if request.path == "/token" {
            status(401).body(r#"{"details":"incorrect username or password"}"#)
        } else {
            bearer(request, "good", &noise(1))
        })
    })
    .await;
    let client = client_with(several(&[("wrong", CredentialScope::Host)]));
    let error = client.manifest(&fake.reference("a/b:t"), "t").await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("incorrect username"), "{error}");
}
